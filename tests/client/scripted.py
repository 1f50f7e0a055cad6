"""A whole client on a scripted HQ: it holds bundles, answers routes, stores nothing, and does as
a test says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.client import Client
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import Home
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.concurrency import OneThread, background
from cipherbox.config.settings import ClientConfig
from cipherbox.envelope.layout import split
from cipherbox.errors import CipherBoxError, RouteChanged
from cipherbox.net import connecting as transport
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.portable import private_dir
from cipherbox.sealing.body import Message
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.sealing.open import open_envelope, parse_envelope
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import SendBatch
from tests.client.fake_hq import FakeHq, Session, no_context
from tests.client.parties import Authority, Party


class ScriptedHq(FakeHq):
    """Confirms what comes, after ``confirm_s`` (None: only when `release` is called)."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(self.answer)
        self.authority = authority
        self.offers: dict[str, list[bytes]] = {}
        self.hashes: dict[bytes, tuple[str, bytes]] = {}
        self.revoked: dict[str, int] = {}
        self.crl = make_crl(authority.issuing, [], 1)
        self.readers: list[str] = []
        self.route_version = 1
        self.confirm_at_once = True
        self.refuse_sends: list[CipherBoxError] = []
        self.refuse: dict[type, list[CipherBoxError]] = {}  # the next answers to frames of a kind
        self.held: list[tuple[Session, int]] = []
        self.envelopes: list[bytes] = []
        self.asked: list[Any] = []
        self.acked: list[int] = []
        self.nacked: list[frames.Nack] = []
        self.credit: list[tuple[int, int]] = []
        self.tag = 0

    def offer(self, party: Party) -> None:
        """HQ's directory holds all bundles of this party."""
        self.offers[party.identity.client_id] = [b.raw for b in party.bundles]
        for bundle in party.bundles:
            self.hashes[bundle.hash] = (bundle.client_id, bundle.raw)

    def change_route(self, *readers: str, refused: int) -> None:
        """Others read there now; so many envelopes that were sealed for those before are
        refused.
        """
        self.readers, self.route_version = list(readers), self.route_version + 1
        self.refuse_sends = [RouteChanged("changed") for _ in range(refused)]

    async def release(self, count: int | None = None) -> None:
        """Confirms what was held back."""
        now, self.held = self.held[:count], self.held[len(self.held) if count is None else count :]
        for session, correlation in now:
            await session.confirm([correlation])

    async def deliver(self, *items: tuple[int, int, int, bytes]) -> None:
        """Pushes (seq, attempt, accepted_at, envelope) to the consumer."""
        session = self.sessions[-1]
        await session.send_bytes(
            b"".join(codec.encode_deliver(self.tag, [(*item[:3], 0, item[3]) for item in items]))
        )

    async def answer(self, session: Session, event: Any) -> None:
        self.asked.append(event)
        if refused := self.refuse.get(type(event)):
            error = refused.pop(0)
            await session.send(
                frames.Error(
                    event.correlation, error.code, error.retryable, str(error), error.detail
                )
            )
        elif isinstance(event, SendBatch):
            await self._sends(session, event)
        elif isinstance(event, frames.GetBundles):
            await session.send(frames.Bundles(event.correlation, self._bundles(event)))
        elif isinstance(event, frames.GetRevocations):
            await session.send(frames.Revocations(event.correlation, self.crl))
        elif isinstance(event, frames.Resolve):
            queues = [frames.RouteQueue("q", list(self.readers))] if self.readers else []
            await session.send(frames.Route(event.correlation, self.route_version, queues))
        elif isinstance(event, frames.Consume):
            self.tag = event.tag
            await session.send(frames.Ok(event.correlation, 0))
        elif isinstance(event, frames.Credit):
            self.credit.append((event.envelopes, event.size))
        elif isinstance(event, frames.Ack):
            numbers = [n for r in event.ranges for n in range(r.first, r.first + r.count)]
            self.acked += numbers
            await session.send(frames.AckConfirmed(event.correlation, len(numbers), 0))
        else:
            if isinstance(event, frames.Nack):
                self.nacked.append(event)
            await session.send(frames.Ok(event.correlation, 0))

    async def _sends(self, session: Session, event: SendBatch) -> None:
        for correlation, _, _, raw in event.items:
            if self.refuse_sends:
                error = self.refuse_sends.pop(0)
                await session.send(
                    frames.Error(correlation, error.code, error.retryable, str(error), error.detail)
                )
                continue
            self.envelopes.append(raw)
            if self.confirm_at_once:
                await session.confirm([correlation])
            else:
                self.held.append((session, correlation))

    def _bundles(self, event: frames.GetBundles) -> list[frames.BundleAnswer]:
        found = []
        for query in event.clients:
            name = query.client_id
            state = 2 if name in self.revoked else 0 if name in self.offers else 1
            held = self.offers.get(name, [])
            later = held[-1:] if query.after == frames.NEWEST else held[query.after :]
            found.append(frames.BundleAnswer(name, state, self.revoked.get(name, 0), later, False))
        for wanted in event.hashes:
            name, raw = self.hashes.get(wanted, ("", b""))
            at = self.revoked.get(name, 0)
            found.append(
                frames.BundleAnswer(
                    name, 2 if at else 0 if raw else 1, at, [raw] if raw else [], False
                )
            )
        return found

    def counts(self) -> list[int]:
        """Messages in each envelope that came."""
        return [split(raw).prefix.message_count for raw in self.envelopes]


async def inline(call: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread, which a test's clock does not see."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


class NoLog(LogProofVerifier):
    """The scripted HQ keeps no log, and its line does not look."""

    def bundles(self, bundles: Sequence[bytes], proofs: Sequence[bytes]) -> None:
        pass


@asynccontextmanager
async def client_on(
    hq: ScriptedHq,
    party: Party,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[Any] | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    """An open client of ``party`` with its home in ``path``."""
    monkeypatch.setattr(transport, "connect", hq.connect)
    private_dir(path)
    config = ClientConfig(path, party.identity.client_id, "hq:1")
    authority = hq.authority
    monkeypatch.setattr(OneThread, "run", lambda _, *call: inline(*call))
    home = Home(
        config,
        authority.root.certificate,
        authority.issuing.certificate,
        tuple(party.chain),
        party.key,
        party.identity,
        LocalSecretBox(bytes(32)),
        bytes(32),
    )
    events = Events(said.append if said is not None else None)
    async with background() as nursery:
        connection = ReconnectingConnection(config.address, no_context, events, **options)
        client = Client(home, connection, events, nursery, NoLog.of(home, events))
        nursery.start_soon(connection.run, nursery, client.observer)
        await connection.ready()
        yield client


async def settle() -> None:
    """Lets every task do what it can do now."""
    await trio.testing.wait_all_tasks_blocked(0.001)


def opened(raw: bytes, sender: Party, recipient: Party) -> list[Message]:
    return open_envelope(parse_envelope(raw), recipient.identity, sender.bundle)
