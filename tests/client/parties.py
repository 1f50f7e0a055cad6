"""Parties for tests without HQ: a CA, identities, bundles."""

from __future__ import annotations

import time

from cipherbox import pki
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.sealing.identity import Identity


def now_ms() -> int:
    return int(time.time() * 1000)


class Authority:
    """A root and an issuing CA that certify identities."""

    def __init__(self, name: str = "Test HQ") -> None:
        self.root = pki.new_root(name)
        self.issuing = pki.new_issuing(name, self.root)

    def party(self, client_id: str) -> Party:
        return Party(self, client_id)


class Party:
    """A client with certificate, keys and a bundle; `rotate` makes the next bundle."""

    def __init__(self, authority: Authority, client_id: str) -> None:
        self.key = pki.new_key()
        leaf = pki.issue_client(authority.issuing, self.key.public_key(), client_id)
        self.chain = [leaf, authority.issuing.certificate]
        self.identity = Identity.generate(client_id)
        self.bundles: list[KeyBundle] = []
        self.publish()

    @property
    def bundle(self) -> KeyBundle:
        return self.bundles[-1]

    def publish(self, *, signer: Identity | None = None) -> KeyBundle:
        before = self.bundles[-1] if self.bundles else None
        bundle = self.identity.make_bundle(self.key, self.chain, now_ms(), before, signer)
        self.identity.bundle = bundle
        self.bundles.append(bundle)
        return bundle

    def rotate(self, *, signed_by_the_old: bool = True) -> KeyBundle:
        """New keys; without the old key's signature it is what a swapping CA could make."""
        old = self.identity
        self.identity = Identity.generate(old.client_id)
        return self.publish(signer=old if signed_by_the_old else None)
