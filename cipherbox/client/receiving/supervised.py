"""Supervise a receiver: restart it after transient errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cipherbox.client.events import RECEIVER
from cipherbox.client.receiving.ports import Connected
from cipherbox.concurrency import Backoff, supervise
from cipherbox.errors import CipherBoxError, CredentialsError

PAUSE_S, PAUSE_MAX_S = 1.0, 30.0


async def keep_running(
    work: Callable[[], Awaitable[object]],
    client: Connected,
    also_transient: tuple[type[CipherBoxError], ...] = (),
) -> None:
    """Run ``work`` until it is cancelled or raises a permanent error; report transient ones.

    Errors of ``also_transient`` count as transient too, except those of this client's certificate.
    """
    failed = False

    def transient(error: CipherBoxError) -> bool:
        if client.connection.failure is not None:  # a restart does not help, whatever its class
            return False
        counted = isinstance(error, also_transient) and not isinstance(error, CredentialsError)
        return error.retryable or counted

    def report(error: CipherBoxError, pause_s: float) -> None:
        nonlocal failed
        failed = True
        client.events.emit(RECEIVER, f"{error}; retrying in {pause_s:.0f} s")

    async def attempt() -> None:
        if failed:
            await client.connection.ready()
        await work()

    backoff = Backoff(PAUSE_S, PAUSE_MAX_S, healthy_s=PAUSE_MAX_S)
    await supervise(attempt, backoff, transient=transient, on_failure=report)
