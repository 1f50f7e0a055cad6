"""What runs day and night: it is begun again after every error that may pass by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from cipherbox.client.events import RECEIVER
from cipherbox.errors import CipherBoxError, CredentialsError

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import Connected

PAUSE_S, PAUSE_MAX_S = 1.0, 30.0


async def lasting(
    work: Callable[[], Awaitable[object]],
    client: Connected,
    passing: tuple[type[CipherBoxError], ...] = (),
) -> None:
    """Until cancelled, or until ``work`` raises what does not pass: retryable errors are said and
    waited out.

    So are those of ``passing``; but of what is wrong with this client's certificate only what is
    retryable.
    """
    pause = PAUSE_S
    while True:
        began = trio.current_time()
        try:
            await work()
        except CipherBoxError as error:
            if not error.retryable and (
                isinstance(error, CredentialsError) or not isinstance(error, passing)
            ):
                raise
            if trio.current_time() - began > PAUSE_MAX_S:
                pause = PAUSE_S
            client.events.say(RECEIVER, f"{error}; going on in {pause:.0f} s")
            await trio.sleep(pause)
            pause = min(pause * 2, PAUSE_MAX_S)
            await client.line.ready()
