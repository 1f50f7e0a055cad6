"""A whole CipherBox in one process under a virtual clock: HQ, senders and receivers as they are,
only without TLS.

Real: the engine, its sessions and the SQLite store, the clients with outbox, inbox, sessions, files
and receipts, a witness, frames, sealing.  In place of threads calls run inline, in place of TLS
there are memory streams that know who is at the other end, and the disks are those of `disk`.
Every choice comes from the seed, trio's own included, so a seed gives the same run again.

A crash of a node is a cancelled nursery; then its directory is made to contain what survived at the
instant of the crash.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import attrs
import nacl.bindings
import nacl.signing
import trio
import trio.testing

from cipherbox import concurrency, pki, portable
from cipherbox.cli.prove import history
from cipherbox.cli.prove.worker import content_of
from cipherbox.client.client import Client
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import IDENTITY, Home
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.client.log.witness import Witness
from cipherbox.client.outbox.transfers import Transfers
from cipherbox.client.publishing.files import send_file, send_unfinished
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import background
from cipherbox.config.settings import ClientConfig, SessionTable, load_server_config
from cipherbox.envelope import transparency_log as log_format
from cipherbox.errors import (
    CipherBoxError,
    CredentialsError,
    DiskFull,
    NetworkError,
    StoreUnavailable,
)
from cipherbox.net import connecting as transport
from cipherbox.pki import revocation_lists
from cipherbox.sealing import key_file
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.server.app import tick
from cipherbox.server.ca import credentials
from cipherbox.server.hq import HQ
from cipherbox.store.copying import copy
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE, SqliteStore, open_store
from tests.server.hq import Person
from tests.sim.disk import Disk, Disks, Survivors, flip_bit

BASE_S = 1_800_000_000.0
SENDERS, RECEIVERS = ("S1", "S2"), ("R1", "R2")
LEAVER = "X1"  # a sender that is revoked
CLIENTS = (*SENDERS, *RECEIVERS, LEAVER)
HQ_NODE = "hq"
NODES = (HQ_NODE, *CLIENTS)
LOCAL_KEY = bytes(32)
# Every fourth seed starts all nodes for the first time; the others have lived, which is also
# cheaper.
FIRST_START = 4
_node: contextvars.ContextVar[str] = contextvars.ContextVar("node", default="")


class Pipe:
    """Bytes in one direction; an end that is closed closes it for both."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.sent_all = self.unread = False  # the writing end is closed; the reading end is
        self.waiting = trio.lowlevel.ParkingLot()


class SimStream(trio.abc.Stream):
    """One end of a line: late, in pieces, sometimes swallowing everything; `peer` is whose
    certificate it shows.
    """

    def __init__(self, coming: Pipe, going: Pipe, world: World, peer: Any) -> None:
        self._in, self._out, self._world, self._peer = coming, going, world, peer
        self.swallowing = False
        self._unsent = b""  # of what was to be sent at once

    def peer_certificate(self) -> Any:
        return self._peer

    def send_now(self, data: bytes) -> bool:
        """Take some of it, as `TlsStream.send_now`, or all of it; nothing of a node that crashed in
        the middle of this step.
        """
        scope = self._world.scopes.get(_node.get())
        if scope is not None and scope.cancel_called:
            return True
        taken = len(data) if self._world.chance.random() < 0.7 else self._part(data)
        if not self.swallowing:
            if self._unsent or self._out.sent_all or self._out.unread:
                taken = 0
            self._out.data += data[:taken]
            self._out.waiting.unpark_all()
        self._unsent += data[taken:]
        return not self._unsent

    def _part(self, data: bytes) -> int:
        return int(self._world.chance.random() * len(data))

    async def send_all(self, data: Any) -> None:
        chance = self._world.chance
        raw, self._unsent = self._unsent + bytes(data), b""
        # Fractions, since the length of a signature differs from run to run.
        cuts = sorted(self._part(raw) for _ in range(chance.choice((0, 0, 0, 1, 2))))
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            if chance.random() < 0.2:
                await trio.sleep(chance.choice((0.001, 0.05, 0.5)))
            if self.swallowing or end > start:
                await trio.lowlevel.checkpoint()
            if end > start and not self.swallowing:
                if self._out.sent_all or self._out.unread:
                    raise NetworkError("the line was cut")  # as the TLS stream says it
                self._out.data += raw[start:end]
                self._out.waiting.unpark_all()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        pipe = self._in
        if pipe.data or pipe.sent_all or pipe.unread:
            await trio.lowlevel.checkpoint()
        while not (pipe.data or pipe.sent_all or pipe.unread):
            await pipe.waiting.park()
        if pipe.unread:
            raise NetworkError("the line was cut")
        data = bytes(pipe.data[:max_bytes])
        del pipe.data[:max_bytes]
        return data

    async def aclose(self) -> None:
        self._out.sent_all = self._in.unread = True
        for pipe in (self._out, self._in):
            pipe.waiting.unpark_all()
        await trio.lowlevel.checkpoint()


@attrs.define
class Template:
    """What a seed starts from: HQ's directory with all clients enrolled, and the clients' keys; or
    what all nodes have after a short life without faults.
    """

    path: Path  # with a directory for each node
    people: dict[str, Person]
    root: tuple[Any, Any]  # of HQ's root and issuing certificate
    log: dict[str, list[dict[str, Any]]] = attrs.Factory(dict)  # what each sender did
    until_s: float = 0.0  # when its life ended, of virtual time
    lived: Template | None = None  # the same after a short life


class Faulty:
    """Before a store: fails when the world says so, before a commit took effect or after."""

    world: World

    def commit(self, changes: Any, epoch: int) -> None:
        fault, self.world.store_fault = self.world.store_fault, ""
        if self.world.disks.of(str(self.world.path / HQ_NODE)).full and changes.envelopes:  # type: ignore[union-attr]
            raise DiskFull("for a test")  # PostgreSQL's disk, which is not simulated
        if fault == "before":
            raise StoreUnavailable("for a test: before the commit took effect")
        super().commit(changes, epoch)  # type: ignore[misc]
        if fault == "after":
            raise StoreUnavailable("for a test: the commit took effect")
        if fault == "crash":
            self.world.crash(HQ_NODE, power=self.world.chance.random() < 0.5)


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
        first = seed % FIRST_START == 0 or template.lived is None
        start = template if first or template.lived is None else template.lived
        self.path, self.template, self._began_s = path, template, start.until_s
        self.chance = random.Random(seed)
        self.clock_offset_s = dict.fromkeys(NODES, 0.0)
        self.store_fault = ""
        self.hq: HQ | None = None
        self.streams: list[SimStream] = []
        self.scopes: dict[str, trio.CancelScope] = {}
        self.clients: dict[str, Client] = {}
        self.log = {name: [*start.log.get(name, ())] for name in (*SENDERS, LEAVER)}
        self.began = False
        self.calmed = trio.Event()
        self.resting = False  # senders begin nothing
        self.revoked = False
        self.finished: set[str] = set()  # senders that publish nothing more
        self.flipped = ""  # the file that had a flipped bit
        self.ended: Callable[[str, BaseException], None] = lambda name, error: None
        self.on_event: Callable[[str, str], None] | None = None  # to look into a seed
        self.recoveries: dict[str, int] = {}  # node -> crashes that follow soon after its start
        self.rotations: set[str] = set()  # clients that are to rotate their keys
        self.disks = Disks()
        self._next = {
            name: max((row["first"] + row["count"] for row in rows), default=1)
            for name, rows in self.log.items()
        }
        self._left: dict[str, Survivors] = {}  # node -> what survived its crash
        self._databases: list[tuple[str, sqlite3.Connection]] = []
        for name in NODES:
            shutil.copytree(start.path / name, path / name)
            self.disks.add(path / name)
        (path / "files").mkdir()
        if target is not None:
            with closing(SqliteSource(path / HQ_NODE, DATABASE)) as source:
                with closing(PostgresStore(target, path / HQ_NODE, create=True)) as sink:
                    copy(source, sink)

    @property
    def calm(self) -> bool:
        """Whether there are no faults any more."""
        return self.calmed.is_set()

    def disk(self, name: str) -> Disk:
        disk = self.disks.of(str(self.path / name))
        assert disk is not None
        return disk

    def now_s(self) -> float:
        """The time of day, as the node of this task has it."""
        try:
            now = trio.current_time()
        except RuntimeError:
            now = 0.0
        return BASE_S + self._began_s + now + self.clock_offset_s.get(_node.get(), 0.0)

    # -- nodes -------------------------------------------------------------------------------------

    def is_up(self, name: str) -> bool:
        """Whether a node runs."""
        return self.hq is not None if name == HQ_NODE else name in self.clients

    def crash(self, name: str, *, power: bool, flip: bool = False) -> None:
        """Stop a node now; what survives on its disk is decided now, too.  ``flip``: and one bit of
        it changes.
        """
        scope = self.scopes.get(name)
        if scope is None or scope.cancel_called:
            return
        sub = random.Random(self.chance.random())  # the number of its draws is not the seed's
        self._left[name] = self.disk(name).survivors(sub, power)
        if flip:
            self.flipped = f"{name}/{flip_bit(self._left[name], sub)}"
        scope.cancel()

    def stop_midway(self, name: str, calls: int) -> None:
        """Let a node crash in the middle of what it does, after so many calls of its disk."""
        disk, power = self.disk(name), self.chance.random() < 0.5
        disk.stop, disk.stops_after = lambda: self.crash(name, power=power), calls

    async def node(self, name: str, live: Callable[[], Any]) -> None:
        """A node for ever: when it crashes, or ends with an error of its own, it begins again."""
        _node.set(name)
        while True:
            scope = self.scopes[name] = trio.CancelScope()
            async with trio.open_nursery() as nursery:
                if self.recoveries.get(name, 0) > 0:
                    self.recoveries[name] -= 1
                    nursery.start_soon(self._crash_soon, name)
                with scope:
                    try:
                        await live()
                    except* (CipherBoxError, OSError) as errors:
                        # the program ends, and is started again
                        self.ended(name, first_of(errors))
                nursery.cancel_scope.cancel()
            self.close(name)
            if name in self._left:
                self.disk(name).restore(self._left.pop(name))
            if name == LEAVER and self.revoked:
                return
            await trio.sleep(self.chance.uniform(0.05, 2.0))

    def start(self, nursery: trio.Nursery) -> None:
        """Start all nodes; the one that leaves only in a world where it is revoked."""
        nursery.start_soon(self.node, HQ_NODE, self.serve)
        for name in SENDERS if self.revoked else (*SENDERS, LEAVER):
            nursery.start_soon(self.node, name, functools.partial(self.client, name, self.send))
        for name in RECEIVERS:
            nursery.start_soon(self.node, name, functools.partial(self.client, name, self.receive))

    async def _crash_soon(self, name: str) -> None:
        await trio.sleep(self.chance.choice((0.0, 0.02, 0.2, 1.0)))
        if not self.calm:
            self.crash(name, power=self.chance.random() < 0.5)

    def connected(self, path: str, db: sqlite3.Connection) -> sqlite3.Connection:
        """Note who opened a database: a process that ends closes all of them."""
        self._databases.append((path, db))
        return db

    def close(self, name: str = "") -> None:
        """Close the databases of a node; of all nodes without a name."""
        root = str(self.path / name).rstrip("/") + "/"
        for path, db in self._databases:
            if path.startswith(root):
                db.close()
        self._databases = [(p, d) for p, d in self._databases if not p.startswith(root)]

    async def serve(self) -> None:
        directory = self.path / HQ_NODE
        config = load_server_config(directory)
        limits = attrs.evolve(
            config.limits,
            disk_reserve_bytes=65536,
            disk_resume_bytes=0,
            key_requests_per_minute=1_000_000,
            # small, so that queues wait for credit and are read from the store in pages
            credit_envelopes=2,
            head_entries=4,
            page_entries=3,
        )
        config = attrs.evolve(config, limits=limits)
        store: FaultyStore | FaultyPostgres
        FaultyStore.world = FaultyPostgres.world = self  # type: ignore[misc]
        if self.target is not None:
            store = FaultyPostgres(self.target, directory, force=True, limits=limits)
        else:
            store = cast(FaultyStore, open_store(directory, limits=limits, kind=FaultyStore))
        try:
            hq = HQ(
                config,
                store,
                clock_ms=lambda: int(self.now_s_of(HQ_NODE) * 1000),
                clock_s=trio.current_time,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hq.engine.run)
                if not self.began:  # the template is of another time
                    hq.clock.confirm()
                    await hq.mark_clock()
                    self.began = True
                await hq.engine.in_store(hq.trust.crl)
                nursery.start_soon(hq.revocations.run)
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

    def now_s_of(self, name: str) -> float:
        return BASE_S + self._began_s + trio.current_time() + self.clock_offset_s[name]

    async def connect(self, name: str, timeout_s: float) -> SimStream:
        await trio.sleep(self.chance.uniform(0.0, 0.05))
        hq = self.hq
        if hq is None or (not self.calm and self.chance.random() < 0.1):
            raise NetworkError("HQ cannot be reached")
        if hq.trust.revoked_at(name):
            raise CredentialsError("HQ does not accept this certificate")  # as TLS would
        up, down = Pipe(), Pipe()
        near = SimStream(down, up, self, hq.trust.material.server)
        far = SimStream(up, down, self, self.template.people[name].chain[0])
        self.streams += [near, far]
        self.hq_nursery.start_soon(hq.session(far, name, hq.log_key, lambda: None).run)  # type: ignore[arg-type]
        return near

    async def client(self, name: str, body: Callable[[Client], Any]) -> None:
        """One life of a client."""
        person, home = self.template.people[name], self.path / name
        config = ClientConfig(
            home,
            name,
            name,
            tries=2,
            timeout_s=5.0,
            pause_max_s=2.0,
            sessions=SessionTable(one_time_prekeys=6),  # each key costs a millisecond
        )
        events = Events(self.on_event and (lambda event: self.on_event(name, event)))
        identity = key_file.load(home / IDENTITY, local_key=LOCAL_KEY)
        try:
            async with background() as nursery:
                files = Home(
                    config,
                    *self.template.root,
                    tuple(person.chain),
                    person.key,
                    identity,
                    LocalSecretBox(LOCAL_KEY),
                    LOCAL_KEY,
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
                nursery.start_soon(self._keep_keys, client)
                await body(client)
        finally:
            self.clients.pop(name, None)

    async def _keep_keys(self, client: Client) -> None:
        """Finish what an earlier life began, and rotate when the world says so."""
        while True:
            await client.connection.ready()
            await client.finish_keys()
            if client.client_id in self.rotations:
                self.rotations.discard(client.client_id)
                with suppress(CipherBoxError):  # the keys are kept: `finish_keys` publishes them
                    await client.key_lifecycle.rotate()
            await trio.sleep(1.0)

    # -- work --------------------------------------------------------------------------------------

    def _put(self, name: str, kind: str, count: int) -> tuple[int, list[str], list[str]]:
        """Log a put and return its first number, its recipients and its contents."""
        chance = self.chance
        first, self._next[name] = self._next[name], self._next[name] + count
        to = sorted(chance.sample(RECEIVERS, chance.randint(1, 2)))
        sizes = [chance.choice((0, 10, 70_000)) for _ in range(count)]
        if kind == "file":
            sizes = [chance.choice((0, 3_000, 200_000))]
            contents = [f"{name}-{first}" * (sizes[0] // 4)]
        else:
            contents = [content_of(name, first + i, "x" * size) for i, size in enumerate(sizes)]
        row = {
            "to": to,
            "kind": kind,
            "name": f"{name}-{first}.bin" if kind == "file" else "",
            "sha256": [history.sha256(content.encode()) for content in contents],
        }
        self._note(name, "put", first, count, **row)
        return first, to, contents

    def _note(self, who: str, what: str, first: int, count: int, **more: Any) -> None:
        self.log[who].append({"what": what, "first": first, "count": count, **more})

    async def send(self, client: Client) -> None:
        chance, name = self.chance, client.client_id
        self.finished.discard(name)  # a crash may have lost the mark that a file is sent
        while not (self.calm or (name == LEAVER and self.revoked)):
            with suppress(CipherBoxError):
                await send_unfinished(client)
            with trio.move_on_after(chance.uniform(0.0, 4.0)):
                await self.calmed.wait()
            if self.resting or self.calm:
                continue
            kind = chance.choice(
                ("message", "message", "message", "session", "kept", "file", "anew")
            )
            if (
                kind == "anew"
            ):  # what nobody has opened yet is sealed again, as `outbox reseal` does
                with suppress(CipherBoxError):
                    await client.outbox().seal_again_all()
                continue
            if kind == "file":
                first, to, (content,) = self._put(name, kind, 1)
                file = self.path / "files" / f"{name}-{first}.bin"
                file.write_bytes(content.encode())
                with suppress(CipherBoxError):
                    await send_file(client, file, (file.name,), to, "text/plain")
                    self._note(name, "ok", first, 1)
                continue
            count = chance.randint(1, 3)
            first, to, contents = self._put(
                name, "session" if kind == "session" else "message", count
            )
            with suppress(CipherBoxError):
                stanza = "ratchet" if kind == "session" else None
                await client.publish(contents, to=to, wait=kind != "kept", stanza=stanza)
                self._note(name, "kept" if kind == "kept" else "ok", first, count)
        await self._last(client)
        while True:
            with suppress(CipherBoxError):
                if not await send_unfinished(client):
                    self.finished.add(name)
            client.outbox().look()
            await trio.sleep(1.0)

    async def _last(self, client: Client) -> None:
        """After the last fault, one more message: whatever happened, the next one is confirmed."""
        name = client.client_id
        first, to, contents = self._put(name, "message", 1)
        await client.publish(contents, to=to, wait=True)
        self._note(name, "ok", first, 1)

    async def receive(self, client: Client) -> None:
        receiver = Receiver(client, incoming=self.path / client.client_id / "incoming")
        if client.client_id != RECEIVERS[-1]:
            await receiver.run()
            return
        async with background() as nursery:
            key = nacl.signing.SigningKey(bytes(32))
            nursery.start_soon(Witness(client, key).run, lambda head: None)
            await receiver.run()

    # -- the end -----------------------------------------------------------------------------------

    def unsettled(self) -> str:
        """Return what is not settled yet; empty if everything is."""
        names = (*SENDERS, *RECEIVERS)
        if self.hq is None:
            return "HQ is down"
        if missing := [name for name in names if name not in self.clients]:
            return f"{missing} are down"
        if busy := set(SENDERS) - self.finished:  # the leaver finishes, too
            return f"{busy} have files to send"
        for name in SENDERS:
            box = self.clients[name].outbox().outbox
            for what, rows in (
                ("unsent", box.waiting(0, 1 << 62, 1)),
                ("unsigned", box.unsigned(1)),
            ):
                if rows:
                    return f"{name} has {what} envelopes"
        queues = self.hq.engine.broker.state.queues
        names = [f"box.{name}{box}" for name in RECEIVERS for box in ("", ".bulk")]
        for box in (queues[name] for name in names if queues[name].depth):
            return (
                f"{box.name} has {box.depth} entries of {sorted(box.used)}, {len(box.ready)} of "
                f"them ready, {len(box.unacknowledged)} delivered, {len(box.consumers)} consumers"
            )
        return ""

    def report(self) -> dict[str, Any]:
        """Return what everybody saw, as `prove` reports it."""
        assert self.hq is not None
        store = self.hq.store
        found: dict[str, Any] = {"accepted": [], "again": []}
        for row in store.log(0, 1_000_000, 1 << 40):
            index = log_format.decode_record(row.record).index
            for group in log_format.decode_groups(row.body):
                history.add_accepted(found, index, group)
        dead, _ = store.dead_letters("", "", 1000, False)
        deliveries = None
        if self.target is None:
            with closing(sqlite3.connect(self.path / HQ_NODE / DATABASE)) as db:
                leavers = {
                    row["envelope"][:28] for row in found["accepted"] if row["sender"] == LEAVER
                }
                deliveries = [
                    list(row)
                    for row in db.execute(history.DELIVERIES)
                    if row[0].replace("-", "")[:28] not in leavers
                ]
        return {
            "format": "cipherbox-prove-report",
            "version": 1,
            "limits": {"memory_bytes": 0, "files": 0},
            "standstill": [],
            "processes": {},
            "senders": {name: self._sender(name) for name in self.log},
            "receivers": {name: history.receiver_lines(self.path / name) for name in RECEIVERS},
            "hq": {
                **found,
                "log_entries": 0,
                "log_wrong": [],
                "dead_letters": dead,
                "deliveries": deliveries,
            },
        }

    def _sender(self, name: str) -> dict[str, Any]:
        """What a sender has.  A revoked one gets no receipts, and HQ takes nothing more of it."""
        if name == LEAVER:  # what its outbox kept, nobody will send
            log = [row for row in self.log[name] if row["what"] != "kept"]
            return {"log": log, "outbox": [], "transfers": []}
        box = self.clients[name].outbox().outbox
        return {
            "log": self.log[name],
            "outbox": [
                history.outbox_row(row, box.outcomes(row.number), box.proof(row.number))
                for row in box.newest(1 << 40)
            ],
            "transfers": [history.transfer_row(one) for one in Transfers(box).all(1 << 40)],
        }


def first_of(error: BaseException) -> BaseException:
    """Return what is in groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


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


# What is certified and signed is the same in every seed but for the envelopes, and every life
# verifies it again.  These depend on nothing else, and an error is not remembered.
verify_signature = functools.lru_cache(4096)(pki.verify_signature)
is_signed_list = functools.lru_cache(256)(revocation_lists.is_signed)
open_signed = functools.lru_cache(4096)(nacl.bindings.crypto_sign_open)


@functools.lru_cache(4096)
def verify_chain(chain: tuple[bytes, ...], root: Any, at: Any, usage: Any) -> Any:
    """Verify a chain for a time; what it returns depends on nothing else."""
    return pki.profile.verify_chain(chain, root, at, usage)


def chain_verified(chain: Any, root: Any, at: Any = None, usage: Any = pki.CLIENT) -> Any:
    """In place of `pki.verify_chain`: every life of a client verifies the same few chains."""
    return verify_chain(tuple(chain), root, at, usage)


@contextmanager
def without_cycles() -> Iterator[None]:
    """Collect no cycles within a seed."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def virtual(world: World, seed: int, monkeypatch: Any) -> Iterator[trio.abc.Clock]:
    """Time, threads, chance, the disks and the network as the world has them; yields its clock."""
    import time

    async def connect(
        address: str, context: Any, nursery: Any, *, timeout_s: float, line: Any
    ) -> SimStream:
        return await world.connect(address, timeout_s)

    def free_bytes(path: Path) -> int:
        disk = world.disks.of(str(path))
        return 0 if disk is not None and disk.full else 1 << 40

    open_sqlite = sqlite3.connect

    def opened(path: Any, *arguments: Any, **options: Any) -> sqlite3.Connection:
        return world.connected(str(path), open_sqlite(path, *arguments, **options))

    monkeypatch.setattr(pki, "verify_chain", chain_verified)
    monkeypatch.setattr(pki, "verify_signature", verify_signature)
    monkeypatch.setattr(revocation_lists, "is_signed", is_signed_list)
    monkeypatch.setattr(nacl.bindings, "crypto_sign_open", open_signed)
    monkeypatch.setattr(credentials, "server_context", lambda *_: None)  # there is no TLS
    monkeypatch.setattr(transport, "connect", connect)
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    monkeypatch.setattr(concurrency.OneThread, "run", lambda _, *call: inline(*call))
    monkeypatch.setattr(concurrency, "_random", random.Random(seed))
    monkeypatch.setattr(portable, "free_bytes", free_bytes)
    monkeypatch.setattr(sqlite3, "connect", opened)
    monkeypatch.setattr(time, "time", world.now_s)
    # turns that end by time must end at the same place again, however busy the machine is
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, virtual_s)
    import trio._core._run as core

    monkeypatch.setattr(core, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    core._r.seed(seed)
    now = trio.testing.MockClock(autojump_threshold=0)
    # it would add real time, which is virtual here
    monkeypatch.setattr(type(now), "current_time", lambda self: self._virtual_base)
    with world.disks.watched(monkeypatch), without_cycles():
        try:
            yield now
        finally:
            world.close()
