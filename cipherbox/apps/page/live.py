"""Server-sent events: a line whenever something changed, upon which the page draws itself anew."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from starlette.responses import Response, StreamingResponse

from cipherbox.apps.page.desk import Desk
from cipherbox.apps.page.door import Door
from cipherbox.apps.page.guard import cookie_of
from cipherbox.apps.page.view import View

BEAT_S = 10.0  # between lines when nothing happens, so that a browser that is gone is noticed


async def live(view: View) -> Response:
    """Answer with a stream that ends when the browser is logged out."""
    door: Door = view.request.app.state.door
    return StreamingResponse(
        _changes(view.desk, door, cookie_of(view.request.headers)), media_type="text/event-stream"
    )


async def _changes(desk: Desk, door: Door, cookie: str) -> AsyncIterator[bytes]:
    desk.listeners += 1
    try:
        yield b"retry: 2000\n\n"
        while door.admits(cookie, active=False):
            changed = desk.changed.next()
            with trio.move_on_after(BEAT_S) as scope:
                await changed.wait()
            yield b": still here\n\n" if scope.cancelled_caught else b"data: changed\n\n"
        yield b"data: locked\n\n"
    finally:
        desk.listeners -= 1
