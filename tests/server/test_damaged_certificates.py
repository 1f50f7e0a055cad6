"""One flipped bit in a certificate: HQ and clients either load it or name what is damaged.

The parser reads parts of a certificate only when they are used, and OpenSSL reads more of it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cipherbox import pki
from cipherbox.client.home import load_home
from cipherbox.errors import CipherBoxError, ConfigError
from cipherbox.server.ca.credentials import certificates_in, read_material
from tests import soak
from tests.server.hq import prepare, prepare_another

STEP = 1 if soak.ON else 16
P384, UNKNOWN_CURVE = (bytes.fromhex(f"06052b810400{number}") for number in ("22", "7f"))  # OIDs


def flipped(der: bytes) -> Iterator[bytes]:
    for at in range(0, len(der), STEP):
        data = bytearray(der)
        data[at] ^= 1 << (at // STEP) % 8
        yield bytes(data)


def as_pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"-----END CERTIFICATE-----\n"


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("where", ["hq/tls/server.crt", "hq/ca/issuing.crt", "hq/ca/root.crt"])
def test_hq(tmp_path: Path, where: str) -> None:
    config = prepare_another(tmp_path / "hq")
    count(tmp_path / where, lambda: read_material(config).context())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("name", ["client.crt", "ca.crt"])
def test_a_client(tmp_path: Path, name: str) -> None:
    prepare_another(tmp_path / "hq")
    (path,) = (tmp_path / "admin").rglob(name)
    count(path, lambda: load_home(tmp_path / "admin").context())


def count(path: Path, use: Callable[[], object]) -> None:
    first, *others = pki.load_pem(path.read_bytes(), path.name)
    refused = 0
    for der in flipped(pki.der(first)):
        path.write_bytes(as_pem(der) + pki.pem(*others))
        try:
            use()
        except CipherBoxError:
            refused += 1
    assert refused


def test_a_key_of_another_kind_is_not_called_damaged(tmp_path: Path) -> None:
    """As an organization's CA may have it."""
    path = prepare(tmp_path / "hq").tls.root
    der = pki.der(certificates_in(path)[0])
    path.write_bytes(as_pem(der.replace(P384, UNKNOWN_CURVE)))
    with pytest.raises(ConfigError, match=r"root\.crt holds a certificate with a key of a kind"):
        certificates_in(path)


def test_what_a_peer_shows(tmp_path: Path) -> None:
    """A certificate from elsewhere, before any signature of it is checked."""
    root = read_material(prepare_another(tmp_path / "hq")).root
    refused = 0
    for der in flipped(pki.der(root)):
        try:
            found = pki.load_der(der)
            assert pki.common_name(found) is not None
            assert pki.spki_of(found)
        except CipherBoxError:
            refused += 1
    assert refused
