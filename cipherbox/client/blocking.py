"""The client for programs that do not use trio: the same names, plain calls.

    with connect() as client:
        client.publish("Sample 17 is ready", to=["CA-RC"])
        with client.consume() as deliveries:
            for delivery in deliveries:
                print(delivery.messages[0].content)
                client.ack(delivery)

trio runs in a thread of its own; every call hands its work over and waits for the outcome, so calls
may come from any thread, concurrently.  Every public call of `Client` exists here with the same
types.  Calls after `close` raise GoingAway.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cipherbox.client.blocking_calls import BlockingCalls
from cipherbox.client.blocking_contexts import BlockingConsumer, BlockingPublisher
from cipherbox.client.blocking_thread import ClientThread
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.client.receiving.recorder import OnLines


class BlockingClient(BlockingCalls):
    """See the module; made by `connect`."""

    def __init__(self, home: Path | str | None, options: dict[str, Any]) -> None:
        self._thread = ClientThread(home, options)

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
        """Close the client.  May be called twice, and from any thread."""
        self._thread.close()

    def receive(
        self,
        queues: Sequence[str] | None = None,
        *,
        count: int | None = None,
        idle_s: float | None = None,
        on_lines: OnLines | None = None,
    ) -> int:
        """Run a `Receiver`; return the number of messages recorded.

        With neither ``count`` nor ``idle_s`` it runs until the client is closed (`Receiver.keep`).
        ``on_lines`` is called in another thread.
        """
        receiver = Receiver(self._thread.client, on_lines=on_lines)
        if count is None and idle_s is None:
            self._thread.call(receiver.keep, queues)
        else:
            self._thread.call(lambda: receiver.run(queues, count=count, idle_s=idle_s))
        return receiver.received


def connect(home: Path | str | None = None, **options: Any) -> BlockingClient:
    """Open a client as `open_client` does, with the same arguments; use it in a ``with`` block."""
    return BlockingClient(home, options)


__all__ = ["BlockingClient", "BlockingConsumer", "BlockingPublisher", "connect"]
