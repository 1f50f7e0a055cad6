"""A real HQ in this process over real TLS on a port the system chose, and raw clients that send
any frame or bytes.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.broker import model as m
from cipherbox.config.settings import ServerConfig, load_server_config, secret_key
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.limits import LIMITS, Limits
from cipherbox.net.connecting import connect
from cipherbox.net.tls import TlsStream, client_context
from cipherbox.net.websocket import WebSocketStream
from cipherbox.sealing.body import pack, text_message
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.seal import Sealed, choose_keys, seal
from cipherbox.server.app import run
from cipherbox.server.ca.offline import CA_KEY, OfflineCa
from cipherbox.server.hq import HQ
from cipherbox.server.operations.setup import init_hq
from cipherbox.store.files import Files
from cipherbox.store.port import Store
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries, WireConnection

PATIENCE_S = 60.0
BIG = 1 << 25
LEFT_OUT = shutil.ignore_patterns("lock", "reserve")


def open_vault(directory: Path) -> OfflineCa:
    """A CA's directory, with a `ca.key` that is under no password."""
    return OfflineCa(directory, secret_key(directory / CA_KEY))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@attrs.define(eq=False)
class Person:
    """A certified client with keys."""

    name: str
    key: pki.PrivateKey
    chain: list[x509.Certificate]
    identity: Identity
    ids: EnvelopeIds = attrs.Factory(lambda: EnvelopeIds(now_ms))

    def seal(self, *to: Person, text: str = "hello", plain: bytes = b"", **more: Any) -> Sealed:
        bundles = [p.identity.bundle for p in to]
        options = {"envelope_id": self.ids.next(), "sealed_at": now_ms(), **more}
        keys = choose_keys(bundles, stanza=2)  # type: ignore[arg-type]
        return seal(
            self.identity, bundles, plain or pack([text_message(text)]), 1, keys=keys, **options
        )  # type: ignore[arg-type]


class Raw:
    """One connection of a client: sends frames or bytes, hands out what comes back."""

    def __init__(self, stream: TlsStream | WebSocketStream) -> None:
        self.stream = stream
        self.wire = WireConnection("client")
        self.events: list[Any] = []
        self.correlation = 0
        self.told: list[str] = []  # what HQ said in its PINGs

    async def hello(self) -> frames.Welcome:
        await self.stream.send_all(
            self.wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 25, 30, "raw test"))
        )
        answer = await self.next()
        assert isinstance(answer, frames.Welcome), answer
        return answer

    async def send(self, frame: object) -> None:
        await self.stream.send_all(codec.encode(frame))

    async def next(self) -> Any:
        """The next event; None at the end of the connection."""
        with trio.fail_after(PATIENCE_S):
            while not self.events:
                events = self.wire.events()
                self.told += [e.news for e in events if isinstance(e, frames.Ping) and e.news]
                self.events = [e for e in events if not isinstance(e, frames.Ping)]
                if not self.events:
                    data = await self.stream.receive_some()
                    if not data:
                        return None
                    self.wire.receive_data(data)
            return self.events.pop(0)

    async def ask(self, kind: Callable[..., Any], *fields: Any) -> Any:
        """Sends a request and gives its answer; deliveries that come between are kept."""
        self.correlation += 1
        await self.send(kind(self.correlation, *fields))
        kept = []
        while True:
            answer = await self.next()
            if isinstance(answer, Deliveries):
                kept.append(answer)
                continue
            self.events = kept + self.events
            return answer

    async def publish(self, raw: bytes, flags: int = 0) -> Any:
        return await self.ask(frames.Send, flags, 0, raw)

    async def refused(self, kind: Callable[..., Any], *fields: Any) -> str:
        answer = await self.ask(kind, *fields)
        assert isinstance(answer, frames.Error), answer
        return codec_name(answer)


def codec_name(error: frames.Error | frames.GoingAway) -> str:
    """The name of the error that a frame tells."""
    from cipherbox.errors import BY_CODE, GoingAway

    return GoingAway.name if isinstance(error, frames.GoingAway) else BY_CODE[error.code].name


@attrs.define(eq=False)
class Running:
    """The HQ under test."""

    hq: HQ
    issuing: pki.Authority
    root: x509.Certificate
    address: str
    websocket: str
    nursery: trio.Nursery
    scope: trio.CancelScope
    stopped: trio.Event
    people: dict[str, Person] = attrs.Factory(dict)
    raws: list[Raw] = attrs.Factory(list)

    async def released(self) -> None:
        """Wait until HQ holds nothing of any client in memory: it has read all that was sent."""
        with trio.fail_after(PATIENCE_S):
            while self.hq.memory.held:
                await trio.sleep(0.01)

    async def person(self, name: str, *, role: str = "client", days: int = 30) -> Person:
        """A client as enrolment leaves it: recorded, with mailboxes, its bundle published."""
        if name not in self.people:
            key = pki.new_key()
            certificate = pki.issue_client(self.issuing, key.public_key(), name, days)
            chain = [certificate, self.issuing.certificate]
            identity = Identity.generate(name)
            identity.bundle = identity.make_bundle(key, chain, now_ms())
            self.people[name] = Person(name, key, chain, identity)
            row = self.hq.trust.record(certificate)
            await self.hq.engine.in_store(self.hq.store.put_certificate, row)
            self.hq.trust.put(row)
            await self.hq.engine.call(lambda n: m.AddClient(0, "", n, name, role))
        return self.people[name]

    async def dial(
        self, who: Person | None = None, *, websocket: bool = False, hello: bool = True
    ) -> Raw:
        context = client_context(self.root, who.chain if who else None, who.key if who else None)
        raw = await self.open(context, self.websocket if websocket else self.address)
        if hello:
            await raw.hello()
        return raw

    async def open(self, context: ssl.SSLContext, address: str = "") -> Raw:
        raw = Raw(
            await connect(address or self.address, context, self.nursery, timeout_s=PATIENCE_S)
        )
        self.raws.append(raw)
        return raw

    async def client(self, name: str, **more: Any) -> Raw:
        return await self.dial(await self.person(name), **more)


def prepare(directory: Path) -> ServerConfig:
    """An HQ directory with every listener on a port the system chooses: a copy of one that this
    process made once.  All of them have the same keys.
    """
    for name, target in (("hq", directory), ("admin", directory.parent / "admin")):
        shutil.copytree(_made_once() / name, target, ignore=LEFT_OUT, dirs_exist_ok=True)
    return load_server_config(directory)


@functools.cache
def _made_once() -> Path:
    base = Path(tempfile.mkdtemp(prefix="cipherbox-hq-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    config = prepare_another(base / "hq")
    text = config.file.read_text()
    # allocating and freeing 64 MiB costs more than the rest of a start
    config.file.write_text(text.replace("[limits]", f"[limits]\ndisk_reserve_bytes = {1 << 20}"))
    return base


def prepare_another(directory: Path) -> ServerConfig:
    """As `prepare`, with keys of its own, and certificates that begin now."""
    init_hq(
        directory,
        address="127.0.0.1:1",
        name="DC-HQ",
        listen="127.0.0.1:0",
        websocket_listen="127.0.0.1:0",
        admin_home=directory.parent / "admin",
    )
    return load_server_config(directory)


def configured(directory: Path) -> ServerConfig:
    return load_server_config(directory) if directory.exists() else prepare(directory)


@asynccontextmanager
async def running(
    directory: Path,
    *,
    limits: Limits | None = None,
    files: Files | None = None,
    opener: Callable[[ServerConfig], Store] | None = None,
    clock_s: Callable[[], float] = clock.elapsed_s,
    clock_ms: Callable[[], int] = clock.now_ms,
) -> AsyncIterator[Running]:
    """Serve ``directory`` (made when it is new) while the block runs; end it gracefully."""
    config = configured(directory)
    if limits is not None:
        if limits.disk_reserve_bytes == LIMITS.disk_reserve_bytes:
            limits = attrs.evolve(limits, disk_reserve_bytes=config.limits.disk_reserve_bytes)
        config = attrs.evolve(config, limits=limits)
    store = (
        opener(config)
        if opener
        else open_store(config.directory, files=files, limits=config.limits)
    )
    hq = HQ(config, store, clock_ms, clock_s)
    assert hq.trust.authority is not None
    stopped = trio.Event()

    async def serve(scope: trio.CancelScope, *, task_status: Any) -> None:
        with scope:
            await run(hq, task_status=task_status)
        stopped.set()

    try:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            served = await nursery.start(serve, scope)
            (host, port), (_, web) = served.addresses[0], served.websocket[0]
            here = Running(
                hq,
                hq.trust.authority,
                hq.trust.root,
                f"{host}:{port}",
                f"wss://{host}:{web}/",
                nursery,
                scope,
                stopped,
            )
            try:
                yield here
            finally:
                for raw in here.raws:
                    await trio.aclose_forcefully(raw.stream)
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def two(r: Running) -> tuple[Raw, Raw]:
    """A sender and a recipient."""
    return await r.client("FL-LAB"), await r.client("CA-RC")


async def consumed(raw: Raw, queue: str, tag: int = 1) -> None:
    assert isinstance(await raw.ask(frames.Consume, tag, queue, 100, BIG), frames.Ok)
