"""An engine over a real store whose calls run inline, can be held and made to fail; and peers
that note it all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from cipherbox.broker import model as m
from cipherbox.errors import CipherBoxError
from cipherbox.limits import LIMITS, Limits
from cipherbox.server.engine import Engine
from cipherbox.store.sqlite.store import SqliteStore, open_store
from tests.store.suite import AT, incoming

SMALL = attrs.evolve(LIMITS, disk_reserve_bytes=64 * 1024)


@attrs.define(eq=False)
class Inline:
    """Runs store calls here; ``fail`` maps a method's name to errors, raised one per call."""

    calls: list[str] = attrs.Factory(list)
    fail: dict[str, list[Exception]] = attrs.Factory(dict)
    held: trio.Event | None = None
    reached: trio.Event = attrs.Factory(trio.Event)

    async def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        name = call.__name__.replace("_write", "commit")
        self.calls.append(name)
        if name == "commit" and self.held is not None:
            self.reached.set()
            await self.held.wait()
        await trio.lowlevel.checkpoint()
        if self.fail.get(name):
            raise self.fail[name].pop(0)
        return call(*args)


@attrs.define(eq=False)
class Noted:
    """A peer that keeps what the engine gives it."""

    client: str
    connection: int = 0
    answers: list[m.Answer] = attrs.Factory(list)
    handed: list[tuple[int, str, list[m.Entry]]] = attrs.Factory(list)
    ended: list[CipherBoxError] = attrs.Factory(list)
    news: trio.Event = attrs.Factory(trio.Event)
    lags: bool = True

    def answer(self, answers: Sequence[m.Answer], proof: object = None) -> None:
        self.answers += answers
        self._wake()

    def deliver(self, tag: int, queue: str, entries: list[m.Entry]) -> None:
        self.handed.append((tag, queue, entries))
        self._wake()

    def fetched(self, answer: m.FetchedEntries) -> None:
        self.answers.append(answer)
        self._wake()

    def end(self, error: CipherBoxError) -> None:
        self.ended.append(error)
        self._wake()

    def _wake(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def until(self, so: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not so():
                await self.news.wait()


@attrs.define(eq=False)
class World:
    """An engine with clients A, B and C; `run` it in a nursery."""

    engine: Engine
    store: SqliteStore
    runner: Inline

    def peer(self, client: str) -> Noted:
        peer = Noted(client)
        peer.connection = self.engine.attach(peer)
        return peer

    async def publish(
        self, peer: Noted, *indexes: int, body: bytes = b"body", to: tuple[str, ...] = ("B",)
    ) -> None:
        items = [incoming(i, body, to) for i in indexes]
        await self.engine.submit(
            m.Publish(peer.connection, peer.client, items), len(body) * len(items)
        )

    async def consume(self, peer: Noted, queue: str = "", envelopes: int = 1000) -> None:
        name = queue or f"box.{peer.client}"
        await self.engine.submit(
            m.Consume(peer.connection, peer.client, 1, 1, name, envelopes, 1 << 30)
        )


@asynccontextmanager
async def world(path: Path, limits: Limits = SMALL) -> AsyncIterator[World]:
    """The engine runs while the block does; an error it ends with is raised."""
    store = open_store(path, create=True, limits=limits)
    try:
        runner = Inline()
        engine = Engine(store, limits, lambda: AT + 1, runner)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.run)
            for name in "ABC":
                await engine.call(lambda n, name=name: m.AddClient(0, "", n, name, "client"))  # type: ignore[misc]
            runner.calls.clear()
            yield World(engine, store, runner)
            nursery.cancel_scope.cancel()
    finally:
        store.close()
