"""The client for programs that know nothing of trio: the same names, plain calls.

    with connect() as client:
        client.publish("Sample 17 is ready", to=["CA-RC"])
        with client.consume() as deliveries:
            for delivery in deliveries:
                print(delivery.messages[0].content)
                client.ack(delivery)

trio runs in a thread of its own; every call hands its work over and waits for the outcome, so calls
may come from any thread, several at once.  `close` may be called twice and from any thread; calls
after it raise GoingAway.  A consumer or publisher lives in a task of the background thread: trio's
blocks must end in the task where they began.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import trio

from cipherbox.client import client as api
from cipherbox.client.publishing.publish import Confirmation
from cipherbox.client.publishing.publisher import Publisher
from cipherbox.client.publishing.splitting import Content
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.held_inbox import OnLines
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import CipherBoxError, GoingAway
from cipherbox.wire import frames

T = TypeVar("T")


class _Held(Generic[T]):
    """An async context manager, entered and left in one background task."""

    def __init__(self, manager: contextlib.AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._leave = trio.Event()
        self._left = trio.Event()
        self._abort = False
        self._failure: BaseException | None = None

    async def enter(self, nursery: trio.Nursery) -> T:
        value: T = await nursery.start(self._run)
        return value

    async def leave(self, abort: bool) -> None:
        """``abort``: the caller's block failed, so nothing is waited for."""
        self._abort = abort
        self._leave.set()
        await self._left.wait()
        if self._failure is not None:
            raise self._failure

    async def _run(self, task_status: trio.TaskStatus[T]) -> None:
        started = False
        try:
            async with self._manager as value:
                started = True
                task_status.started(value)
                await self._leave.wait()
                if self._abort:
                    raise _Abort
        except _Abort:
            pass
        except Exception as error:
            if not started:
                raise
            self._failure = error
        finally:
            self._left.set()


class _Abort(Exception):
    pass


class BlockingConsumer:
    """Deliveries of a queue; iterate over it inside ``with``."""

    def __init__(self, client: BlockingClient, held: _Held[Consumer]) -> None:
        self._client, self._held = client, held
        self._consumer: Consumer | None = None

    def __enter__(self) -> BlockingConsumer:
        self._consumer = self._client._enter(self._held)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(GoingAway):  # what is not acknowledged comes again
            self._client._leave(self._held, abort=error is not None)

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            delivery = self.next()
            assert delivery is not None
            yield delivery

    def next(self, timeout_s: float | None = None) -> Delivery | None:
        """The next delivery, or None when none came in time."""
        consumer = self._consumer
        if consumer is None:
            raise RuntimeError("use the consumer inside: with client.consume(...) as deliveries")

        async def take() -> Delivery | None:
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
                return await consumer.__anext__()
            return None

        return self._client._call(take)


class BlockingPublisher:
    """A publisher that batches by itself, inside ``with``."""

    def __init__(self, client: BlockingClient, held: _Held[Publisher]) -> None:
        self._client, self._held = client, held
        self._publisher: Publisher | None = None

    def __enter__(self) -> BlockingPublisher:
        self._publisher = self._client._enter(self._held)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._client._leave(self._held, abort=False)
        else:
            with contextlib.suppress(GoingAway):  # the block's own error is the one to see
                self._client._leave(self._held, abort=True)

    @property
    def _inner(self) -> Publisher:
        if self._publisher is None:
            raise RuntimeError("use the publisher inside: with client.publisher(...) as publisher")
        return self._publisher

    def send(self, message: Content) -> None:
        """Takes one message; waits only when there is no room."""
        self._client._call(self._inner.send, message)

    def send_many(self, messages: Iterable[Content]) -> None:
        """Takes many messages in one step of the background thread: much faster than one call
        each.
        """
        many = list(messages)
        publisher = self._inner

        async def all_of_them() -> None:
            for message in many:
                if not publisher.put(message):
                    await publisher.room()

        self._client._call(all_of_them)

    def flush(self) -> None:
        """Waits until everything is confirmed."""
        self._client._call(self._inner.flush)

    @property
    def confirmed(self) -> int:
        return self._inner.confirmed


class BlockingClient:
    """See the module; made by `connect`."""

    def __init__(self, home: Path | str | None, options: dict[str, Any]) -> None:
        self._home, self._options = home, options
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        self._client: api.Client | None = None
        self._thread = threading.Thread(target=self._run, name="cipherbox-client", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.close()
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and the background thread."""
        with self._lock:
            token, stop = self._token, self._stop
        if token is not None and stop is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the same calls ----------------------------------------------------------------------------

    @property
    def client_id(self) -> str:
        return self._inner.client_id

    @property
    def role(self) -> str:
        return self._inner.role

    def publish(self, messages: Content | Sequence[Content], **options: Any) -> Confirmation:
        """As `Client.publish`."""
        return self._call(lambda: self._inner.publish(messages, **options))

    def publisher(self, **options: Any) -> BlockingPublisher:
        """As `Client.publisher`."""
        return BlockingPublisher(self, _Held(self._inner.publisher(**options)))

    def consume(self, queue: str | None = None, **options: Any) -> BlockingConsumer:
        """As `Client.consume`."""
        return BlockingConsumer(self, _Held(self._inner.consume(queue, **options)))

    def fetch(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """As `Client.fetch`."""
        return self._call(self._inner.fetch, queue, envelopes)

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> int:
        """As `Client.ack`."""
        return self._call(self._inner.ack, deliveries)

    def nack(
        self, delivery: Delivery, *, requeue: bool = True, outcome: int = 255, reason: str = ""
    ) -> None:
        """As `Client.nack`."""
        self._call(
            lambda: self._inner.nack(delivery, requeue=requeue, outcome=outcome, reason=reason)
        )

    def resend(self, queue: str | None = None, **options: Any) -> int:
        """As `Client.resend`."""
        return self._call(lambda: self._inner.resend(queue, **options))

    def receive(
        self,
        queues: Sequence[str] | None = None,
        *,
        count: int | None = None,
        idle_s: float | None = None,
        on_lines: OnLines | None = None,
    ) -> int:
        """Runs a `Receiver`; returns how many messages were recorded.  ``on_lines`` is called in
        another thread.

        With neither ``count`` nor ``idle_s`` until the client is closed (`Receiver.keep`).
        """
        receiver = Receiver(self._inner, on_lines=on_lines)
        if count is None and idle_s is None:
            self._call(receiver.keep, queues)
        else:
            self._call(lambda: receiver.run(queues, count=count, idle_s=idle_s))
        return receiver.received

    def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """As `Client.resolve`."""
        return self._call(self._inner.resolve, exchange, routing_key)

    def offer_prekeys(self) -> int:
        """As `Client.offer_prekeys`."""
        return self._call(self._inner.offer_prekeys)

    def bundles(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """As `Client.bundles`."""
        return self._call(self._inner.bundles, client_ids)

    def seal_again(self, client_id: str | None = None) -> tuple[int, list[CipherBoxError]]:
        """As `Client.seal_again`."""
        return self._call(self._inner.seal_again, client_id)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The calls about topology and administration, as `Client` has them: declare_queue,
        bind, status, enrol, …
        """
        if name.startswith("_") or name not in _PLAIN:
            raise AttributeError(f"a blocking client has no {name!r}")

        def call(*arguments: Any, **options: Any) -> Any:
            return self._call(lambda: getattr(self._inner, name)(*arguments, **options))

        return call

    # -- the background thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:
            self._failure = error
        finally:
            self._client = None
            self._ready.set()

    async def _main(self) -> None:
        stop = trio.Event()
        with self._lock:
            self._token, self._stop = trio.lowlevel.current_trio_token(), stop
        async with trio.open_nursery() as outer:

            async def wait_for_stop() -> None:
                await stop.wait()
                outer.cancel_scope.cancel()

            outer.start_soon(wait_for_stop)
            try:
                async with (
                    api.open_client(self._home, **self._options) as client,
                    trio.open_nursery() as nursery,
                ):
                    self._client, self._nursery = client, nursery
                    self._ready.set()
                    await trio.sleep_forever()
            except Exception as error:
                self._failure = error
                outer.cancel_scope.cancel()

    @property
    def _inner(self) -> api.Client:
        client = self._client
        if client is None:
            raise GoingAway("this client is closed")
        return client

    def _call(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        if self._client is None or self._token is None:
            raise GoingAway("this client is closed")
        try:
            result: T = trio.from_thread.run(work, *arguments, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise GoingAway("this client was closed") from None
        return result

    def _enter(self, held: _Held[T]) -> T:
        nursery = self._nursery
        if nursery is None:
            raise GoingAway("this client is closed")
        value: T = self._call(held.enter, nursery)
        return value

    def _leave(self, held: _Held[Any], *, abort: bool) -> None:
        self._call(held.leave, abort)


_PLAIN = frozenset(
    [
        "declare_exchange",
        "delete_exchange",
        "declare_queue",
        "delete_queue",
        "bind",
        "unbind",
        "purge",
        "list",
        "status",
        "ping",
        "register",
        "enrol",
        "approve",
        "grant",
        "revoke",
        "export_requests",
        "import_certificates",
    ]
)


def connect(home: Path | str | None = None, **options: Any) -> BlockingClient:
    """Opens a client as `open_client` does, with the same arguments; use it in a ``with`` block."""
    return BlockingClient(home, options)
