"""Homes with sessions, and HQ as far as sessions see it: what several tests of them play with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.rows import OutboxEntry
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.envelope import layout as layouts
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.sealing.body import Message, pack
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.open import parse_envelope
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.ratchet.prekeys import verified_prekeys
from cipherbox.sealing.ratchet.settings import SessionSettings
from cipherbox.sealing.seal import seal
from tests.parties import Party, now_ms, party

NAMES = ("FL-LAB", "CA-RC", "SF-RC")
IDS = EnvelopeIds(now_ms)


class Home:
    """A client's disk, and the program on it, which may end at any time."""

    def __init__(self, name: str, path: Path, clock: Any, numbers: SessionSettings) -> None:
        self.party: Party = party(name)
        self.name, self._path, self._clock, self._numbers = name, path, clock, numbers
        path.mkdir(exist_ok=True)
        self.recorded: list[bytes] = []  # the inbox
        self.known: set[bytes] = set()
        self.start()

    def start(self) -> None:
        self.sessions = Sessions(
            self._path, SecretBox(bytes(32)), self.party.identity, self._numbers, self._clock
        )
        self.outbox = Outbox(self._path, chains=self.sessions.chains)

    def crash(self) -> None:
        self.end()
        self.start()

    def beside(self) -> Home:
        """Another process of this home."""
        return Home(self.name, self._path, self._clock, self._numbers)

    def forget(self) -> None:
        """All sessions, as if they had not been."""
        with self.sessions.receiving._transaction():
            self.sessions._db.execute("DELETE FROM sessions")

    def end(self) -> None:
        self.sessions.close()
        self.outbox.close()

    def keep(self, raw: bytes, turned: Sequence[RatchetStep]) -> None:
        """The envelope is in the outbox."""
        self.sessions.sync()
        prefix = layouts.split(raw).prefix
        names = tuple(r.client_id for r in prefix.recipients)
        fresh = OutboxEntry(
            raw,
            prefix.envelope_id,
            0,
            1,
            "",
            "",
            names,
            0,
            0,
            0,
            bytes(32),
            b"",
            steps=tuple(turned),
        )
        assert self.outbox.write([fresh]) == set()
        self.sessions.committed(turned)


@attrs.define
class World:
    """HQ as far as sessions see it: prekeys, and what lies in each mailbox."""

    homes: dict[str, Home]
    prekeys: dict[str, tuple[bytes, list[bytes]]] = attrs.Factory(dict)
    boxes: dict[str, list[tuple[str, bytes]]] = attrs.Factory(dict)
    turns: list[tuple[str, str, bytes]] = attrs.Factory(list)
    used: dict[tuple[bytes, bytes, int], bytes] = attrs.Factory(dict)

    def offer(self, name: str) -> None:
        keys = self.homes[name].sessions.keys
        offer = keys.replacement()
        keys.offered(offer)
        self.prekeys[name] = offer.signed, list(offer.once)

    def ensure(self, home: Home, to: str) -> None:
        if home.sessions.due(to):
            signed, once = self.prekeys[to]
            home.sessions.begin(
                to,
                verified_prekeys(
                    to, self.homes[to].party.bundle.sign_keys, signed, once.pop(0) if once else b""
                ),
            )

    def seal(self, home: Home, to: str, text: bytes, *, keep: bool = True) -> bytes:
        """``keep``: it is in the outbox; otherwise it never left."""
        self.ensure(home, to)
        plain = pack([Message(text)])
        with home.sessions.sending_chains([to]) as sending_chains:
            raw = seal(
                home.party.identity,
                [self.homes[to].party.bundle],
                plain,
                1,
                envelope_id=IDS.next(),
                sealed_at=now_ms(),
                sending_chains=sending_chains,
            ).raw
        if not keep:
            return raw
        home.keep(raw, [step for sending_chain in sending_chains for step in sending_chain.steps])
        parsed = session.parse(stanza(raw))
        at = (parsed.session_id, parsed.header.key, parsed.header.number)
        assert self.used.setdefault(at, raw) == raw, "a message key was used twice"
        return raw

    def open(self, home: Home, sender: str, raw: bytes) -> bytes:
        messages = home.sessions.open(parse_envelope(raw), self.homes[sender].party.bundle)
        return messages[0].content


def stanza(raw: bytes) -> bytes:
    return layouts.stanza(raw, layouts.split(raw), 0)


def world(
    path: Path, count: int = 2, numbers: SessionSettings | None = None
) -> tuple[World, list[int]]:
    now = [1_000_000]
    used = numbers or SessionSettings(one_time_prekeys=3)
    homes = {n: Home(n, path / n, lambda: now[0], used) for n in NAMES[:count]}
    made = World(homes, boxes={n: [] for n in homes})
    for name in homes:
        made.offer(name)
    return made, now
