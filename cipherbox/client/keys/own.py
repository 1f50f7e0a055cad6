"""This client's own encryption keys: a new one goes into the next bundle, which HQ gets.

Rules.
1. A private key is in the key file before HQ has its public key: whatever is cut off, what others
   seal can be opened.
2. HQ's word decides which bundle is the newest.  When it has one that this home does not know as
   its own, because the answer was lost or the machine stopped, that one is taken over first, if its
   keys are here.
3. What a key replaces stays in the key file and goes on opening.
"""

from __future__ import annotations

from typing import NamedTuple

from cipherbox import clock
from cipherbox.client.home import IDENTITY, Home, keyless
from cipherbox.client.keys.directory import Directory
from cipherbox.client.log.ports import Asks
from cipherbox.envelope.bundle import KeyBundle, check_succession, decode_bundle
from cipherbox.errors import BundleError, ConfigError, KeyMissing
from cipherbox.portable import lock_file
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.wire import frames

LOCK = "keys.lock"


class Added(NamedTuple):
    """What came of `add_key`; ``again``: the published bundle held this key already."""

    bundle: KeyBundle
    again: bool


async def add_key(home: Home, directory: Directory, connection: Asks, key: DecryptKey) -> Added:
    """Publishes the next bundle of this client, with ``key`` behind the others, in place of the one
    of its kind.

    Refused or NetworkError: HQ has no new bundle, or its answer was lost; asking again goes on from
    there.
    """
    if home.identity is None:
        raise keyless()
    with lock_file(home.path / LOCK, f"the key file in {home.path}"):
        identity = (await _caught_up(directory, connection, _load(home))).keeping(key)
        _save(home, identity)
        assert identity.bundle is not None
        again = key.key_id in [k.key_id for k in identity.current]
        if not again:
            others = [k.key_id for k in identity.current if k.algorithm != key.algorithm]
            newer = identity.arranged([*others, key.key_id])
            newer.bundle = newer.make_bundle(home.key, home.chain, clock.now_ms(), identity.bundle)
            await _register(connection, newer.bundle)
            _save(home, newer)
        assert home.identity.bundle is not None
        return Added(home.identity.bundle, again)


async def _caught_up(directory: Directory, connection: Asks, identity: Identity) -> Identity:
    bundle = identity.bundle
    if bundle is None:
        raise BundleError(
            "this client has not published its keys yet",
            remedy="finish joining first: cipherbox join",
        )
    (answer,) = await directory.ask([(identity.client_id, bundle.sequence)])
    later = [decode_bundle(raw) for raw in answer.bundles]
    if not later:
        # HQ finds it the same, or was restored from a time before it
        await _register(connection, bundle)
        return identity
    newest = check_succession(bundle, later)
    try:
        if newest.sign_keys != identity.sign_keys:
            raise KeyMissing("its signing keys are not here")
        taken = identity.arranged([k.key_id for k in newest.encrypt_keys])
    except KeyMissing as error:
        raise BundleError(
            f"HQ has key bundle {newest.sequence} of {identity.client_id}, which "
            f"another copy of this home made ({error})",
            remedy="bring its keys.cbk here and run this again",
        ) from None
    taken.bundle = newest
    return taken


async def _register(connection: Asks, bundle: KeyBundle) -> None:
    await connection.request(frames.Register, bundle=bundle.raw)


def _local_key(home: Home) -> bytes:
    if home.local_key is None:
        raise ConfigError(
            "this home was opened without its local key, so its keys cannot be changed"
        )
    return home.local_key


def _load(home: Home) -> Identity:
    return keyfile.load(home.path / IDENTITY, local_key=_local_key(home))


def _save(home: Home, identity: Identity) -> None:
    keyfile.save(home.path / IDENTITY, identity, local_key=_local_key(home))
    if home.identity is not None:
        home.identity.follow(identity)
