"""The consumer and the publisher of the blocking client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager as Context
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

import trio

from cipherbox.client.blocking_thread import ClientThread, HeldContext
from cipherbox.client.publishing.publisher import Publisher
from cipherbox.client.publishing.splitting import Content
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.errors import GoingAway
from cipherbox.limits import LIMITS

T = TypeVar("T")


class _BlockingContext(Generic[T]):
    """An async context manager of the client's thread, used with a plain ``with``."""

    usage: ClassVar[str]
    may_be_closed: ClassVar[bool]  # leaving after the client was closed is no error

    def __init__(self, thread: ClientThread, manager: Context[T]) -> None:
        self._thread, self._held = thread, HeldContext(manager)
        self._value: T | None = None

    def __enter__(self) -> Self:
        self._value = self._thread.enter(self._held)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # the block's own error is the one to raise
        quiet = self.may_be_closed or error is not None
        with contextlib.suppress(GoingAway) if quiet else contextlib.nullcontext():
            self._thread.leave(self._held, abort=error is not None)

    @property
    def _inner(self) -> T:
        if self._value is None:
            raise RuntimeError(f"use it inside: {self.usage}")
        return self._value


class BlockingConsumer(_BlockingContext[Consumer]):
    """Deliveries of a queue; iterate over it inside ``with``."""

    usage = "with client.consume(...) as deliveries"
    may_be_closed = True  # what is not acknowledged is redelivered

    def __iter__(self) -> Iterator[Delivery]:
        while True:
            delivery = self.next()
            assert delivery is not None
            yield delivery

    def next(self, timeout_s: float | None = None) -> Delivery | None:
        """Return the next delivery, or None when none came in time."""
        consumer = self._inner

        async def take() -> Delivery | None:
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s):
                return await consumer.__anext__()
            return None

        return self._thread.call(take)

    def batch(self, most: int = LIMITS.credit_envelopes) -> list[Delivery]:
        """Wait for deliveries and return 1 to ``most`` of them, not yet opened."""
        consumer = self._inner
        return self._thread.call(consumer.batch, most)


class BlockingPublisher(_BlockingContext[Publisher]):
    """A publisher that batches automatically; use it inside ``with``."""

    usage = "with client.publisher(...) as publisher"
    may_be_closed = False  # what is not confirmed may be lost

    def send(self, message: Content) -> None:
        """Take one message; wait only when there is no room."""
        self._thread.call(self._inner.send, message)

    def send_many(self, messages: Iterable[Content]) -> None:
        """Take many messages in one step of the background thread, much faster than one by one."""
        many = list(messages)
        publisher = self._inner

        async def all_of_them() -> None:
            for message in many:
                if not publisher.put(message):
                    await publisher.room()

        self._thread.call(all_of_them)

    def flush(self) -> None:
        """Wait until everything is confirmed."""
        self._thread.call(self._inner.flush)

    @property
    def confirmed(self) -> int:
        return self._inner.confirmed
