"""Server-sent events: a line whenever something changed, upon which the page draws itself anew.

The line never says what changed: the page asks for that.
"""

from __future__ import annotations

from functools import partial

import trio
from starlette.responses import PlainTextResponse, Response

from cipherbox.apps.page.desk import Desk
from cipherbox.apps.page.door import Door
from cipherbox.apps.page.guard import cookie_of
from cipherbox.apps.page.streaming import Put, Streamed
from cipherbox.apps.page.view import View

MOST_LISTENERS = 24  # a browser needs one; connections remain for everything else
BEAT_S = 10.0  # between lines when nothing happens, so that a browser that is gone is noticed


async def live(view: View) -> Response:
    """Answer with a stream that ends when the browser is logged out."""
    if view.desk.listeners >= MOST_LISTENERS:
        return PlainTextResponse("Too many browsers listen.", 503)
    door: Door = view.request.app.state.door
    cookie = cookie_of(view.request.headers)
    return Streamed(partial(_changes, view.desk, door, cookie), "text/event-stream")


async def _changes(desk: Desk, door: Door, cookie: str, put: Put) -> None:
    desk.listeners += 1
    try:
        # what changed between the drawing of the page and now, another listener may have been told
        await put(b"retry: 2000\ndata: changed\n\n")
        while door.admits(cookie, active=False):
            changed = desk.changed.next()
            with trio.move_on_after(BEAT_S) as scope:
                await changed.wait()
            await put(b": still here\n\n" if scope.cancelled_caught else b"data: changed\n\n")
        await put(b"data: locked\n\n")
    finally:
        desk.listeners -= 1
