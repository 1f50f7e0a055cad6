"""A client in a thread of its own, for programs that know nothing of trio.

A consumer or publisher lives in a task of that thread: trio's blocks must end in the task where
they began.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import trio

from cipherbox.client.client import Client, open_client
from cipherbox.errors import GoingAway

T = TypeVar("T")


class HeldContext(Generic[T]):
    """An async context manager that is entered and left in one background task."""

    def __init__(self, manager: contextlib.AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._leave = trio.Event()
        self._left = trio.Event()
        self._abort = False
        self._failure: BaseException | None = None

    async def enter(self, nursery: trio.Nursery) -> T:
        """Enter the block in a task of ``nursery``; return its value."""
        value: T = await nursery.start(self._run)
        return value

    async def leave(self, abort: bool) -> None:
        """Leave the block and raise what ended it.

        ``abort``: the caller's block failed, so nothing is waited for.
        """
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


class ClientThread:
    """See the module.  Calls may come from any thread, concurrently."""

    def __init__(self, home: Path | str | None, options: dict[str, Any]) -> None:
        self._home, self._options = home, options
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._nursery: trio.Nursery | None = None
        self._client: Client | None = None
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

    def close(self) -> None:
        """Close the client and end the thread.  May be called twice, and from any thread."""
        with self._lock:
            token, stop = self._token, self._stop
        if token is not None and stop is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

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
                    open_client(self._home, **self._options) as client,
                    trio.open_nursery() as nursery,
                ):
                    self._client, self._nursery = client, nursery
                    self._ready.set()
                    await trio.sleep_forever()
            except Exception as error:
                self._failure = error
                outer.cancel_scope.cancel()

    @property
    def client(self) -> Client:
        """The open client; GoingAway after `close`."""
        client = self._client
        if client is None:
            raise GoingAway("this client is closed")
        return client

    def call(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run ``work`` in the thread, and return or raise its outcome; GoingAway after `close`."""
        if self._client is None or self._token is None:
            raise GoingAway("this client is closed")
        try:
            result: T = trio.from_thread.run(work, *arguments, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise GoingAway("this client was closed") from None
        return result

    def enter(self, held: HeldContext[T]) -> T:
        """Enter a block in a task of the thread."""
        nursery = self._nursery
        if nursery is None:
            raise GoingAway("this client is closed")
        value: T = self.call(held.enter, nursery)
        return value

    def leave(self, held: HeldContext[Any], *, abort: bool) -> None:
        """Leave a block in the task where it began."""
        self.call(held.leave, abort)
