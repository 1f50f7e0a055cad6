"""Add an encryption key of this client: publish it in the next bundle.

Rules.
1. A private key is in the key file before HQ has its public key, so that whatever is interrupted,
   messages sealed to it can be opened.
2. HQ decides which bundle is the newest. If it has one that this home has not recorded, because the
   answer was lost or the machine stopped, that one is adopted first if its keys are here.
3. A replaced key stays in the key file and still opens messages.
"""

from __future__ import annotations

from typing import NamedTuple

from cipherbox import clock
from cipherbox.client.home import IDENTITY, Home, keyless
from cipherbox.client.keys.directory import Directory
from cipherbox.client.log.ports import Requester
from cipherbox.envelope.bundle import KeyBundle, check_succession, decode_bundle
from cipherbox.errors import BundleError, ConfigError, KeyMissing
from cipherbox.portable import lock_file
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.wire import frames

LOCK = "keys.lock"


class Added(NamedTuple):
    """The result of `add_key`. ``already_published``: the published bundle had this key already."""

    bundle: KeyBundle
    already_published: bool


async def add_key(
    home: Home, directory: Directory, connection: Requester, key: DecryptKey
) -> Added:
    """Publish the next bundle of this client, with ``key`` after the others, replacing the one of
    its type.

    Raise Refused or NetworkError if HQ has no new bundle or its answer was lost; calling again
    resumes.
    """
    if home.identity is None:
        raise keyless()
    with lock_file(home.path / LOCK, f"the key file in {home.path}"):
        identity = (await _caught_up(directory, connection, _load(home))).with_key(key)
        _save(home, identity)
        assert identity.bundle is not None
        already_published = key.key_id in [k.key_id for k in identity.current]
        if not already_published:
            others = [k.key_id for k in identity.current if k.algorithm != key.algorithm]
            newer = identity.with_current([*others, key.key_id])
            newer.bundle = newer.make_bundle(home.key, home.chain, clock.now_ms(), identity.bundle)
            await _register(connection, newer.bundle)
            _save(home, newer)
        assert home.identity.bundle is not None
        return Added(home.identity.bundle, already_published)


async def _caught_up(directory: Directory, connection: Requester, identity: Identity) -> Identity:
    bundle = identity.bundle
    if bundle is None:
        raise BundleError(
            "this client has not published its keys yet",
            remedy="finish joining: cipherbox join",
        )
    (answer,) = await directory.ask([(identity.client_id, bundle.sequence)])
    later = [decode_bundle(raw) for raw in answer.bundles]
    if not later:
        # HQ already has it, or was restored from an earlier backup
        await _register(connection, bundle)
        return identity
    newest = check_succession(bundle, later)
    try:
        if newest.sign_keys != identity.sign_keys:
            raise KeyMissing("its signing keys are missing")
        taken = identity.with_current([k.key_id for k in newest.encrypt_keys])
    except KeyMissing as error:
        raise BundleError(
            f"HQ has key bundle {newest.sequence} of {identity.client_id}, made by another copy "
            f"of this home ({error})",
            remedy="copy its keys.cbk here and retry",
        ) from None
    taken.bundle = newest
    return taken


async def _register(connection: Requester, bundle: KeyBundle) -> None:
    await connection.request(frames.Register, bundle=bundle.raw)


def _local_key(home: Home) -> bytes:
    if home.local_key is None:
        raise ConfigError("cannot change keys: this home was opened without its local key")
    return home.local_key


def _load(home: Home) -> Identity:
    return keyfile.load(home.path / IDENTITY, local_key=_local_key(home))


def _save(home: Home, identity: Identity) -> None:
    keyfile.save(home.path / IDENTITY, identity, local_key=_local_key(home))
    if home.identity is not None:
        home.identity.update_from(identity)
