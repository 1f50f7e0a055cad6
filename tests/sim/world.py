"""A whole CipherBox in one process under a virtual clock: HQ, senders and receivers as they are,
only without TLS.

Real: the engine, its sessions and the SQLite store, the clients with outbox, inbox and receipts,
frames, sealing.  In place of threads calls run inline, in place of TLS there are memory streams
that know who is at the other end.  Every choice comes from the seed, trio's own included, so a seed
gives the same run again.

A crash of HQ or of a client is a cancelled nursery whose last writes are suppressed and whose files
stay as they are.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import attrs
import orjson
import trio
import trio.testing

from cipherbox import concurrency
from cipherbox.client.client import Client
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import Home
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import background
from cipherbox.config.settings import ClientConfig, load_server_config
from cipherbox.errors import CipherBoxError, DiskFull, NetworkError, StoreUnavailable
from cipherbox.net import connecting as transport
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.server.app import tick
from cipherbox.server.hq import HQ
from cipherbox.store.copying import copy
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE, SqliteStore, open_store
from tests.server.hq import Person

BASE_S = 1_800_000_000.0
FAULTS = (
    "cut",
    "hole",
    "crash hq",
    "crash client",
    "before",
    "after",
    "crash",
    "disk",
    "clock",
    "inbox",
    "inbox after",
)
_HOUR_MS, _STEP_MS = 3_600_000, 399 * 86_400_000  # HQ follows the first, and doubts the second
SENDERS, RECEIVERS = ("S1", "S2"), ("R1", "R2")


class SimStream(trio.abc.Stream):
    """One end of a line: late, in pieces, sometimes swallowing everything; `peer` is whose
    certificate it shows.
    """

    def __init__(self, below: trio.StapledStream[Any, Any], world: World, peer: Any) -> None:
        self._below, self._world, self._peer = below, world, peer
        self.swallowing = False

    def peer_certificate(self) -> Any:
        return self._peer

    async def send_all(self, data: Any) -> None:
        chance = self._world.chance
        raw = bytes(data)
        # Fractions, since the length of a signature differs from run to run.
        cuts = sorted(
            int(chance.random() * len(raw)) for _ in range(chance.choice((0, 0, 0, 1, 2)))
        )
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            if chance.random() < 0.2:
                await trio.sleep(chance.choice((0.001, 0.05, 0.5)))
            if self.swallowing:
                await trio.lowlevel.checkpoint()
            elif end > start:
                try:
                    await self._below.send_all(raw[start:end])
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    raise NetworkError("the line was cut") from None  # as the TLS stream says it

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return bytes(await self._below.receive_some(max_bytes))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise NetworkError("the line was cut") from None

    async def aclose(self) -> None:
        await self._below.aclose()


@attrs.define
class Template:
    """What every seed starts from: HQ's directory with all clients enrolled, and the clients'
    keys.
    """

    directory: Path
    people: dict[str, Person]


class Faulty:
    """Before a store: fails when the world says so, before a commit took effect or after."""

    world: World

    def commit(self, changes: Any, epoch: int) -> None:
        fault, self.world.store_fault = self.world.store_fault, ""
        if self.world.disk_full and (changes.envelopes or changes.replaced):
            raise DiskFull("for a test")
        if fault == "before":
            raise StoreUnavailable("for a test: before the commit took effect")
        super().commit(changes, epoch)  # type: ignore[misc]
        if fault == "after":
            raise StoreUnavailable("for a test: the commit took effect")
        if fault == "crash" and self.world.hq_scope is not None:
            self.world.hq_scope.cancel()


class FaultyStore(Faulty, SqliteStore):
    pass


class FaultyPostgres(Faulty, PostgresStore):
    pass


class World:
    """See the module.  ``target``: HQ's store is in PostgreSQL."""

    def __init__(
        self, path: Path, template: Template, seed: int, target: Target | None = None
    ) -> None:
        self.target = target
        self.path, self.template = path, template
        self.chance = random.Random(seed)
        self.clock_offset_ms = 0
        self.store_fault, self.disk_full = "", False
        self.hq: HQ | None = None
        self.hq_scope: trio.CancelScope | None = None
        self.streams: list[SimStream] = []
        self.scopes: dict[str, trio.CancelScope] = {}
        self.clients: dict[str, Client] = {}
        self.put: dict[str, set[str]] = {}  # content -> recipients, of all that was begun
        self.confirmed: dict[str, set[str]] = {}
        self.calm = self.began = False
        self.inbox_fault = ""
        self.finished: set[str] = set()  # senders that publish nothing more
        shutil.copytree(template.directory, path / "hq")
        if target is not None:
            with closing(SqliteSource(path / "hq", DATABASE)) as source:
                with closing(PostgresStore(target, path / "hq", create=True)) as sink:
                    copy(source, sink)

    def now_ms(self) -> int:
        return int((BASE_S + trio.current_time()) * 1000)

    # -- HQ ----------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """HQ for ever: when it crashes it is started again after a while."""
        while True:
            config = load_server_config(self.path / "hq")
            limits = attrs.evolve(
                config.limits,
                disk_reserve_bytes=65536,
                disk_resume_bytes=0,
                key_requests_per_minute=1_000_000,
            )
            config = attrs.evolve(config, limits=limits)
            store: FaultyStore | FaultyPostgres
            if self.target is not None:
                store = FaultyPostgres(self.target, self.path / "hq", force=True, limits=limits)
            else:
                store = cast(
                    FaultyStore, open_store(self.path / "hq", limits=limits, kind=FaultyStore)
                )
            store.world = self
            hq = HQ(
                config,
                store,
                clock_ms=lambda: self.now_ms() + self.clock_offset_ms,
                clock_s=trio.current_time,
            )
            try:
                with trio.CancelScope() as self.hq_scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(hq.engine.run)
                        if not self.began:  # the template is of another time
                            hq.clock.confirm()
                            await hq.mark_clock()
                            self.began = True
                        await hq.engine.in_store(hq.trust.crl)
                        nursery.start_soon(tick, hq)
                        self.hq_nursery, self.hq = nursery, hq
                        await trio.sleep_forever()
            finally:
                self.hq = None
                for stream in self.streams:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(stream)
                self.streams.clear()
                store.close()
            await trio.sleep(self.chance.uniform(0.1, 5.0))

    async def connect(self, name: str, timeout_s: float) -> SimStream:
        await trio.sleep(self.chance.uniform(0.0, 0.05))
        hq = self.hq
        if hq is None or (not self.calm and self.chance.random() < 0.1):
            raise NetworkError("HQ cannot be reached")
        ours, theirs = trio.testing.memory_stream_pair()
        near = SimStream(ours, self, hq.trust.material.server)
        far = SimStream(theirs, self, self.template.people[name].chain[0])
        self.streams += [near, far]
        self.hq_nursery.start_soon(hq.session(far, name, hq.log_key, lambda: None).run)  # type: ignore[arg-type]
        return near

    # -- clients -----------------------------------------------------------------------------------

    async def live(self, name: str, body: Callable[[Client], Any]) -> None:
        """A client for ever: when it crashes, or ends with an error of its own, it begins again."""
        while True:
            scope = self.scopes[name] = trio.CancelScope()
            with scope, suppress(CipherBoxError):
                await self._one_life(name, body)
            self.clients.pop(name, None)
            await trio.sleep(self.chance.uniform(0.1, 3.0))

    async def _one_life(self, name: str, body: Callable[[Client], Any]) -> None:
        person, home = self.template.people[name], self.path / name
        home.mkdir(exist_ok=True)
        config = ClientConfig(home, name, name, tries=2, timeout_s=5.0, pause_max_s=2.0)
        hq_root, issuing = self.root
        events = Events(None)
        async with background() as nursery:
            secret_box = LocalSecretBox(bytes(32))
            files = Home(
                config,
                hq_root,
                issuing,
                tuple(person.chain),
                person.key,
                person.identity,
                secret_box,
                bytes(32),
            )
            log = LogProofVerifier.of(files, events)
            connection = ReconnectingConnection(
                name, lambda: None, events, tries=2, timeout_s=5.0, pause_max_s=2.0, log=log
            )  # type: ignore[arg-type, return-value]
            client = Client(files, connection, events, nursery, log)
            self.clients[name] = client
            nursery.start_soon(connection.run, nursery, client.observer)
            nursery.start_soon(log.run, connection, connection.window.covered)
            nursery.start_soon(client.receipts.run)
            await body(client)

    @property
    def root(self) -> tuple[Any, Any]:
        from cipherbox import pki

        directory = self.template.directory / "ca"
        return tuple(
            pki.load_pem((directory / n).read_bytes(), n)[0] for n in ("root.crt", "issuing.crt")
        )  # type: ignore[return-value]

    def crash(self, name: str) -> None:
        """Kills a client: nothing it knows is written any more."""
        client = self.clients.get(name)
        if client is not None and client.outbox_sender is not None:

            async def nothing() -> None:
                await trio.lowlevel.checkpoint()

            client.outbox_sender._write = nothing  # type: ignore[method-assign]
        if name in self.scopes:
            self.scopes[name].cancel()

    async def send(self, client: Client) -> None:
        chance, name = self.chance, client.client_id
        while not self.calm:
            await trio.sleep(chance.uniform(0.0, 3.0))
            to = sorted(chance.sample(RECEIVERS, chance.randint(1, 2)))
            first, sizes = (
                len(self.put),
                [chance.choice((0, 10, 70_000)) for _ in range(chance.randint(1, 3))],
            )
            contents = [f"{name} {first + i} {'x' * size}" for i, size in enumerate(sizes)]
            for content in contents:
                self.put[content] = set(to)
            with suppress(CipherBoxError):
                await client.publish(list(contents), to=to)
                for content in contents:
                    self.confirmed[content] = set(to)
        self.finished.add(name)
        while True:
            client.outbox().look()
            await trio.sleep(1.0)

    async def receive(self, client: Client) -> None:
        await Receiver(client).run()

    # -- faults ------------------------------------------------------------------------------------

    async def fault(self) -> None:
        chance = self.chance
        kind = chance.choice(FAULTS)
        if kind == "cut":
            for stream in chance.sample(self.streams, min(len(self.streams), 2)):
                await trio.aclose_forcefully(stream)
        elif kind == "hole" and self.streams:
            chance.choice(self.streams).swallowing = True
        elif kind == "crash hq" and self.hq_scope is not None:
            self.hq_scope.cancel()
        elif kind == "crash client":
            self.crash(chance.choice((*SENDERS, *RECEIVERS)))
        elif kind in ("before", "after", "crash"):
            self.store_fault = kind
        elif kind == "disk":
            self.disk_full = True
            await trio.sleep(chance.uniform(0.5, 10.0))
            self.disk_full = False
        elif kind == "clock":
            self.clock_offset_ms = chance.choice((-_HOUR_MS, 0, _HOUR_MS, -_STEP_MS, _STEP_MS))
        elif kind.startswith("inbox"):
            self.inbox_fault = kind

    # -- the end -----------------------------------------------------------------------------------

    def settled(self) -> bool:
        if self.hq is None or any(name not in self.clients for name in (*SENDERS, *RECEIVERS)):
            return False
        if self.finished < set(SENDERS):
            return False
        if any(self.clients[name].outbox().outbox.waiting(0, 1 << 62, 1) for name in SENDERS):
            return False
        return not any(
            self.hq.engine.broker.state.queues[f"box.{name}"].depth for name in RECEIVERS
        )

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name / "data" / "received_messages.jsonl"
        return (
            [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        )


async def inline(call: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
    """In place of a thread."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


def virtual_s() -> float:
    """Return the virtual time; outside of the simulated world it stands still."""
    try:
        return trio.current_time()
    except RuntimeError:
        return 0.0


@contextmanager
def virtual(world: World, seed: int, monkeypatch: Any) -> Iterator[None]:
    """Time, threads, chance and the network as the world has them."""
    import time

    from cipherbox.client import local_database as localdb
    from cipherbox.store.sqlite import database

    async def connect(
        address: str, context: Any, nursery: Any, *, timeout_s: float, line: Any
    ) -> SimStream:
        return await world.connect(address, timeout_s)

    def faulty_commit(inbox: Inbox) -> None:
        fault, world.inbox_fault = world.inbox_fault, ""
        if fault == "inbox":
            raise sqlite3.OperationalError("for a test: before")
        inbox._db.execute("COMMIT")
        if fault == "inbox after":
            raise sqlite3.OperationalError("for a test: after")

    monkeypatch.setattr(transport, "connect", connect)
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    monkeypatch.setattr(concurrency.OneThread, "run", lambda _, *call: inline(*call))
    monkeypatch.setattr(concurrency, "_random", random.Random(seed))
    monkeypatch.setattr(Inbox, "_commit", faulty_commit)
    monkeypatch.setattr(database, "SETTINGS", (*database.SETTINGS, "synchronous = OFF"))
    monkeypatch.setattr(localdb, "SYNCHRONOUS", "OFF")
    monkeypatch.setattr(time, "time", lambda: BASE_S + trio.current_time())
    # turns that end by time must end at the same place again, however busy the machine is
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, virtual_s)
    import trio._core._run as core

    monkeypatch.setattr(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    core._r.seed(seed)
    yield
