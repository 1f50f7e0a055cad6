"""Certified parties for tests: a root, an issuing CA, and clients with keys and bundles."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import pki
from cipherbox.envelope.bundle import (
    NO_HASH,
    BundleKey,
    KeyBundle,
    decode_bundle,
    encode_bundle,
    encode_signed_part,
)
from cipherbox.envelope.labels import label
from cipherbox.envelope.suites import KeyUsage, SignatureSuite
from cipherbox.sealing.identity import Identity


@attrs.frozen
class World:
    root: pki.Authority
    issuing: pki.Authority


@attrs.frozen
class Party:
    identity: Identity
    key: pki.PrivateKey
    certificate: x509.Certificate
    world: World

    @property
    def bundle(self) -> KeyBundle:
        assert self.identity.bundle is not None
        return self.identity.bundle

    @property
    def chain(self) -> list[x509.Certificate]:
        return [self.certificate, self.world.issuing.certificate]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def world(name: str = "DC-HQ") -> World:
    return _world(name)


@cache
def _world(name: str) -> World:
    root = pki.new_root(name)
    return World(root, pki.new_issuing(name, root))


@cache
def party(name: str, suite: int = 1, where: str = "DC-HQ", copy: int = 0) -> Party:
    """The same arguments give the same party; ``copy`` makes another with the same name."""
    here = world(where)
    key = pki.new_key()
    certificate = pki.issue_client(here.issuing, key.public_key(), name)
    identity = Identity.generate(name, SignatureSuite(suite))
    identity.bundle = identity.make_bundle(key, [certificate, here.issuing.certificate], now_ms())
    return Party(identity, key, certificate, here)


def version_1(
    of: Party,
    before: KeyBundle | None = None,
    *,
    identity: Identity | None = None,
    signer: Identity | None = None,
) -> KeyBundle:
    """The bundle that CipherBox 0.5.0 made of these keys."""
    return old_bundle(identity or of.identity, of.key, of.chain, before, signer)


def old_bundle(
    identity: Identity,
    key: pki.PrivateKey,
    chain: Sequence[x509.Certificate],
    before: KeyBundle | None = None,
    signer: Identity | None = None,
) -> KeyBundle:
    """As `version_1`, of a home's own files."""
    name = identity.client_id.encode()
    keys = [(KeyUsage.ENCRYPT, k.algorithm, k.public) for k in identity.current]
    keys += [(KeyUsage.SIGN, algorithm, public) for algorithm, public in identity.sign_keys.items()]
    signed = (
        struct.pack(
            ">4sBBQQQ32sB",
            b"CBXB",
            1,
            0,
            before.sequence + 1 if before else 1,
            now_ms(),
            pki.ms(chain[0].not_valid_after_utc),
            before.hash if before else NO_HASH,
            len(name),
        )
        + name
        + bytes([len(keys)])
    )
    for usage, algorithm, public in keys:
        signed += struct.pack(">BBH", usage, algorithm, len(public)) + public
    signed += bytes([len(chain)])
    for certificate in chain:
        signed += struct.pack(">H", len(pki.der(certificate))) + pki.der(certificate)
    digest = hashlib.sha256(signed).digest()
    certified = key.sign(label("bundle") + digest, ec.ECDSA(hashes.SHA384()))
    continued = (signer or identity).sign("bundle-continuity", digest) if before else b""
    suite = int((signer or identity).suite) if before else 0
    return decode_bundle(
        signed
        + struct.pack(">H", len(certified))
        + certified
        + struct.pack(">BH", suite, len(continued))
        + continued
    )


def with_other_keys(
    of: Any,
    signed: str = "none",
    before: KeyBundle | None = None,
    *,
    key: pki.PrivateKey | None = None,
    chain: Sequence[x509.Certificate] = (),
    anew: bool = False,
) -> KeyBundle:
    """What who holds the CA can make: the real signing keys of ``of``, and encryption keys of its
    own.

    ``signed``: none; other: by the swapper's own signing key; ed25519: by the first of two keys
    alone.
    """
    evil = Identity.generate(of.identity.client_id)
    keys = [BundleKey(KeyUsage.ENCRYPT, k.algorithm, k.public) for k in evil.current]
    keys += [
        BundleKey(KeyUsage.SIGN, algorithm, public)
        for algorithm, public in of.identity.sign_keys.items()
    ]
    key, chain = key or of.key, chain or of.chain
    part = encode_signed_part(
        evil.client_id,
        before.sequence + 1 if before else 1,
        now_ms(),
        pki.ms(chain[0].not_valid_after_utc),
        before.hash if before else NO_HASH,
        keys,
        [pki.der(c) for c in chain],
        bytes(16),
        int(before is not None and anew),
    )
    digest = hashlib.sha256(part).digest()
    by = (
        Identity(evil.client_id, of.identity.seeds()[0], None, evil.current)
        if signed == "ed25519"
        else evil
    )
    own = b"" if signed == "none" else by.sign("bundle-own", digest)
    certified = key.sign(label("bundle") + digest, ec.ECDSA(hashes.SHA384()))
    suite, continued = (
        (1, evil.sign("bundle-continuity", digest)) if before and not anew else (0, b"")
    )
    return decode_bundle(encode_bundle(part, certified, 1, own, suite, continued))
