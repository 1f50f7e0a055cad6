"""Two or more parties with sessions between them, without storage and without HQ."""

from __future__ import annotations

import os
from functools import cache

import attrs

from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.double_ratchet import public
from cipherbox.sealing.ratchet.handshake import Prekeys, Secrets
from cipherbox.sealing.ratchet.prekeys import Pair
from cipherbox.sealing.ratchet.session import Session


@attrs.frozen
class Person:
    """Private keys; ``once`` may be None."""

    identity: bytes
    signed: Pair
    once: Pair | None

    def prekeys(self) -> Prekeys:
        if self.once is None:
            return Prekeys(public(self.identity), 1, public(self.signed.dh), self.signed.kem_public)
        return Prekeys(
            public(self.identity),
            1,
            public(self.signed.dh),
            self.once.kem_public,
            7,
            public(self.once.dh),
        )

    def secrets(self, once: bool = True) -> Secrets:
        if self.once is None or not once:
            return Secrets(self.identity, self.signed.dh, self.signed.kem)
        return Secrets(self.identity, self.signed.dh, self.once.kem, self.once.dh)


@cache
def person(name: str, once: bool = True) -> Person:
    return Person(os.urandom(32), Pair.generate(), Pair.generate() if once else None)


PARTIES = handshake.parties("FL-LAB", "CA-RC")


def begin(to: Person, me: Person, made_at: int = 1000, parties: bytes = PARTIES) -> Session:
    shaken, agreed = handshake.begin(me.identity, to.prekeys(), made_at, parties)
    return session.started(shaken, agreed, to.prekeys(), made_at)


def answer(me: Person, raw: bytes, parties: bytes = PARTIES) -> Session:
    parsed = session.parse(raw)
    assert parsed.handshake is not None
    agreed = handshake.answer(me.secrets(bool(parsed.handshake.once_id)), parsed.handshake, parties)
    assert agreed.session_id == parsed.session_id
    return session.answered(parsed.handshake, agreed, me.signed.dh, 2000)
