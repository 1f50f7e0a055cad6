"""Certified parties for tests: a root, an issuing CA, and clients with keys and bundles."""

from __future__ import annotations

import time
from functools import cache

import attrs
from cryptography import x509

from cipherbox import pki
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.kinds import SignatureSuite
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
