"""Rejoin: `join` in a home whose client was revoked, was replaced, or whose certificate expired.

1. The home's data stays: outbox, inbox, pins, settings and the local key they are encrypted under.
2. Certificate key, signing keys and encryption keys are new, since the old ones may have been
   copied. The old encryption keys still open messages sealed to them, and sign nothing; no more
   messages are sent in the old sessions.
3. Each step is durable before the next begins, and the same token resumes after a crash: the next
   certificate key beside the old one; HQ's answer; the new keys and their bundle as upcoming; the
   certificate; its key in place; the bundle published; the keys in use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.client.connection.connection import Connection
from cipherbox.client.home import (
    CERTIFICATE,
    IDENTITY,
    ISSUING,
    NEXT_KEY,
    REPLACED,
    ROOT,
    key_replacement,
)
from cipherbox.client.hq_time import stamp_ms
from cipherbox.client.keys.own import LOCK
from cipherbox.client.sessions.superseded import retire_sessions
from cipherbox.config.settings import CLIENT_FILE, ClientConfig, load_client_config
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.errors import BundleRefused, ConfigError, CredentialsError, EnrolmentRefused
from cipherbox.portable import lock_file, write_atomic
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.wire import frames
from cipherbox.wire.token import Token

TRIES = 3


def returning(home: Path, token: Token) -> ClientConfig | None:
    """Return the settings of the home that rejoins, or None for a new home. Raise CredentialsError
    if it belongs to another client.
    """
    if not (home / CLIENT_FILE).exists():
        return None
    config = load_client_config(home)
    if config.client_id != token.client_id:
        raise CredentialsError(
            f"{home} belongs to {config.client_id}",
            remedy=f"choose another directory for {token.client_id} (--home DIRECTORY)",
        )
    known = (
        pki.load_pem((home / ROOT).read_bytes(), str(home / ROOT)) if (home / ROOT).exists() else []
    )
    if known and pki.fingerprint(known[0]) != token.root_fingerprint:
        raise CredentialsError(
            f"{home} belongs to another HQ", remedy="choose another directory (--home DIRECTORY)"
        )
    return config


def next_key(home: Path, local_key: bytes, *, begun: bool) -> pki.PrivateKey:
    """Return the key of this enrolment: that of an interrupted attempt with the same token, or a
    new one.
    """
    with lock_file(home / LOCK, f"the keys of {home}"):
        replacement = key_replacement(home, local_key)
        return replacement.newest() if begun else replacement.begin()


@contextmanager
def undone(home: Path, pending: str) -> Iterator[None]:
    """Remove the next key and the mark of this attempt if HQ refuses it: it has never accepted the
    key.  The mark goes first: with it, a missing next key means that it is in place.
    """
    try:
        yield
    except EnrolmentRefused:
        with lock_file(home / LOCK, f"the keys of {home}"):
            (home / pending).unlink(missing_ok=True)
            (home / NEXT_KEY).unlink(missing_ok=True)
        raise


async def come_back(
    connection: Connection,
    config: ClientConfig,
    fresh: Identity | None,
    chain: Sequence[x509.Certificate],
    key: pki.PrivateKey,
    local_key: bytes,
    timeout_s: float,
) -> None:
    """Replace certificate and keys by the new certificate and the ``fresh`` keys (None: an admin's
    home has none).
    """
    home = config.home
    with lock_file(home / LOCK, f"the keys of {home}"):
        for attempt in range(1, TRIES + 1):
            identity = None
            if fresh is not None:
                identity = _keys_of(home, fresh, local_key)
                await _prepare(connection, identity, fresh, chain, key, timeout_s, stamp_ms(home))
                keyfile.save(home / IDENTITY, identity, local_key=local_key)
            _put_certificate(home, chain, local_key)
            try:
                if identity is not None:
                    await _publish(connection, identity, timeout_s, stamp_ms(home))
                    keyfile.save(home / IDENTITY, identity, local_key=local_key)
            except BundleRefused:
                if attempt == TRIES:
                    raise
            else:
                break
        retire_sessions(home)
        (home / REPLACED).unlink(missing_ok=True)


def _keys_of(home: Path, fresh: Identity, local_key: bytes) -> Identity:
    """Return the home's keys. If they are lost, old messages cannot be opened; a damaged file is
    kept.
    """
    path = home / IDENTITY
    if path.exists():
        with suppress(ConfigError):
            return keyfile.load(path, local_key=local_key)
        os.replace(path, path.with_name(f"{IDENTITY}.damaged"))
    return Identity(fresh.client_id, os.urandom(32), None, ())


async def _prepare(
    connection: Connection,
    identity: Identity,
    fresh: Identity,
    chain: Sequence[x509.Certificate],
    key: pki.PrivateKey,
    timeout_s: float,
    now_ms: int,
) -> None:
    """Set the upcoming keys: ``fresh`` ones in a bundle after HQ's newest, or those of an earlier
    attempt.
    """
    leaf = pki.der(chain[0])
    if identity.bundle is not None and identity.bundle.chain[0] == leaf:
        return  # an earlier attempt got this far
    answer: frames.Bundles = await connection.ask(
        frames.GetBundles,
        timeout_s,
        clients=[frames.BundleQuery(identity.client_id, frames.NEWEST)],
        hashes=[],
    )
    held = [decode_bundle(raw) for raw in answer.answers[0].bundles]
    last = max(held, key=lambda b: b.sequence, default=None)
    upcoming = identity.upcoming
    if upcoming is not None and upcoming.bundle is not None and upcoming.bundle.chain[0] == leaf:
        if last is None or last.hash in (upcoming.bundle.hash, upcoming.bundle.previous_hash):
            return
    elif upcoming is not None:  # of an unfinished rotation: others may have sealed to them
        identity.retired = (
            *identity.retired,
            *(attrs.evolve(k, retired_at=now_ms) for k in upcoming.current),
        )
    fresh.bundle = fresh.make_bundle(key, chain, clock.now_ms(), last)
    identity.upcoming = fresh


async def _publish(
    connection: Connection, identity: Identity, timeout_s: float, now_ms: int
) -> None:
    if identity.upcoming is not None:
        assert identity.upcoming.bundle is not None
        await connection.ask(frames.Register, timeout_s, bundle=identity.upcoming.bundle.raw)
        identity.promote(now_ms)


def _put_certificate(home: Path, chain: Sequence[x509.Certificate], local_key: bytes) -> None:
    write_atomic(home / ISSUING, pki.pem(*chain[1:]))
    write_atomic(home / CERTIFICATE, pki.pem(*chain))
    key_replacement(home, local_key).finish()
