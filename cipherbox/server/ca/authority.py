"""The CA's private keys on HQ's machine: take them off, bring them back, renew the issuing CA.

Rules:

1. A key is removed from HQ only after its copy was synced, read back, and used to sign something
   that its certificate verifies.
2. A root key used to renew is read from its directory and never copied to HQ.
3. The settings are set to offline before the key is removed, and to online after it was restored: a
   crash in between leaves an HQ that starts.  HQ may run meanwhile and needs a reload.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import clock, pki
from cipherbox.config.settings import ServerConfig, secret_key
from cipherbox.errors import ConfigError
from cipherbox.portable import (
    private_dir,
    read_private,
    sync_directory,
    write_atomic,
    write_private,
)
from cipherbox.server.ca.credentials import (
    CA_REQUEST,
    belongs,
    certificates_in,
    checked_issuing,
    key_at,
    load_certificate,
    read_material,
)
from cipherbox.server.ca.offline import CA_KEY, ISSUING, ISSUING_KEY, ROOT, ROOT_KEY, OfflineCa

OpenKey = Callable[[bytes], bytes]  # what is in a `ca.key` -> the 32 bytes
_PROBE = b"cipherbox: this key signs"


def take_off(
    config: ServerConfig, directory: Path, key_file: bytes, open_key: OpenKey, *, whole: bool
) -> list[Path]:
    """Move the root key, and with ``whole`` the issuing CA's, into ``directory``; return the
    removed files.
    """
    service_key = secret_key(config.encryption.service_key_file)
    root, chain = load_certificate(config.tls.root), certificates_in(config.tls.issuing)
    moves = [(config.ca.root_key, ROOT_KEY, root), (config.ca.issuing_key, ISSUING_KEY, chain[0])]
    if not whole:
        moves = moves[:1]
    elif config.ca.organization or not config.ca.root_key.exists():
        moves = moves[1:]  # the root's key was never here, or was taken off before
    keys = []
    for path, name, certificate in moves:
        if not path.exists():
            raise ConfigError(
                f"{path} does not exist: it was taken off before, or was never on this machine"
            )
        key = key_at(path, service_key)
        if not belongs(key, certificate):
            raise ConfigError(
                f"{path} is not the key of {certificate.subject.rfc4514_string()}; nothing was "
                "taken off"
            )
        keys.append((path, name, certificate, key))
    _check_place(directory, root)
    private_dir(directory)
    vault = OfflineCa(directory, open_key(key_file))
    write_private(directory / CA_KEY, key_file)
    write_atomic(directory / ROOT, pki.pem(root))
    write_atomic(directory / ISSUING, pki.pem(*chain))
    for _, name, _, key in keys:
        write_private(directory / name, pki.key_pem(key, vault.key))
    sync_directory(directory.parent)
    copied = OfflineCa(directory, open_key(read_private(directory / CA_KEY)))
    for _, name, certificate, _ in keys:
        _prove(copied.authority(name, certificate))
    if whole:
        _set_offline(config, True)
    for path, _, _, _ in keys:
        path.unlink()
        sync_directory(path.parent)
    return [path for path, _, _, _ in keys]


def _check_place(directory: Path, root: x509.Certificate) -> None:
    there = directory / ROOT
    if there.exists() and load_certificate(there) != root:
        raise ConfigError(f"{directory} already has another CA", remedy="choose another directory")
    if (
        not there.exists()
        and directory.is_dir()
        and any((directory / n).exists() for n in (ROOT_KEY, ISSUING_KEY))
    ):
        raise ConfigError(
            f"{directory} has keys of an unknown CA", remedy="choose another directory"
        )


def _prove(authority: pki.Authority) -> None:
    key = authority.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # `authority` compared the two
    how = ec.ECDSA(hashes.SHA384())
    key.verify(authority.key.sign(_PROBE, how), _PROBE, how)


def bring_back(config: ServerConfig, vault: OfflineCa, *, whole: bool) -> list[Path]:
    """Copy the root key, and with ``whole`` the issuing CA's, back to HQ; return their files."""
    service_key = secret_key(config.encryption.service_key_file)
    root, chain = load_certificate(config.tls.root), certificates_in(config.tls.issuing)
    moves = [(config.ca.root_key, ROOT_KEY, root), (config.ca.issuing_key, ISSUING_KEY, chain[0])]
    if not whole:
        moves = moves[:1]
    elif not (vault.directory / ROOT_KEY).exists():
        moves = moves[1:]
    found = [(path, vault.authority(name, certificate).key) for path, name, certificate in moves]
    for path, key in found:
        write_private(path, pki.key_pem(key, service_key))
        if not path.exists() or pki.spki(key_at(path, service_key).public_key()) != pki.spki(
            key.public_key()
        ):
            raise ConfigError(f"{path} could not be read back")
    if whole:
        _set_offline(config, False)
    return [path for path, _ in found]


def renew(config: ServerConfig, vault: OfflineCa | None) -> x509.Certificate:
    """Renew the issuing CA for ten years, with the same name and key; the root's key is in
    ``vault`` or, if that is None, at HQ.
    """
    if config.ca.offline:
        raise ConfigError(
            "the issuing CA's key is not at HQ: renew it where it is, cipherbox ca renew CADIR, "
            "then carry its next answer to HQ (cipherbox ca sign, cipherbox ca import)"
        )
    material = read_material(config)
    assert material.authority is not None
    if vault is not None:
        root = vault.authority(ROOT_KEY, material.root)
    elif config.ca.root_key.exists():
        key = key_at(config.ca.root_key, secret_key(config.encryption.service_key_file))
        if not belongs(key, material.root):
            raise ConfigError(f"{config.ca.root_key} is not the key of {config.tls.root}")
        root = pki.Authority(material.root, key)
    else:
        raise ConfigError(
            f"{config.ca.root_key} does not exist", remedy="name its directory: --root DIRECTORY"
        )
    renewed = pki.renew_issuing(material.authority, root).certificate
    checked_issuing([renewed], material.root, str(config.tls.issuing), clock.now())
    write_atomic(config.tls.issuing, pki.pem(renewed))
    if vault is not None:
        write_atomic(vault.directory / ISSUING, pki.pem(renewed))
    return renewed


def ask_organization(config: ServerConfig) -> Path:
    """Write the issuing CA's request again, for the organization to sign; return its file."""
    key = key_at(config.ca.issuing_key, secret_key(config.encryption.service_key_file))
    path = config.directory / CA_REQUEST
    write_atomic(path, pki.csr_pem(pki.make_ca_csr(key, config.server.name)))
    return path


def _set_offline(config: ServerConfig, offline: bool) -> None:
    """Set `[ca] offline` in the settings file, keeping all other lines."""
    path, word = config.file.resolve(), str(offline).lower()
    head, table, rest = path.read_text("utf-8-sig").partition("[ca]")
    body, next_table, tail = rest.partition("\n[")
    body, count = re.subn(r"(?m)^(\s*offline\s*=\s*)(true|false)", rf"\g<1>{word}", body)
    if not count:
        body = f"\noffline = {word}{body}"
    text = head + (table or "\n[ca]") + body + next_table + tail
    if tomllib.loads(text).get("ca", {}).get("offline") is not offline:
        raise ConfigError(f"{path}: set [ca] offline = {word} yourself, then say this again")
    write_atomic(path, text.encode())
