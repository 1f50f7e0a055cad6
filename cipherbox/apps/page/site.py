"""The page's site: its routes, and how an answer is drawn.

Every page is HTML made here from a template, and works without the script; the script draws a page
anew when something changes, and uploads files.  What others sent is text in a template, which
escapes it, or an attachment.
"""

from __future__ import annotations

import datetime
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jinja2
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from cipherbox import clock
from cipherbox.apps.page import console, handbook, messages, people, proof, sent, trouble, writing
from cipherbox.apps.page.desk import Desk, PageChoices
from cipherbox.apps.page.door import COOKIE, Door
from cipherbox.apps.page.guard import BodyTooLarge, cookie_of
from cipherbox.apps.page.live import live
from cipherbox.apps.page.view import Handler, Helpers, View, environment, read_form
from cipherbox.apps.page.words import Translate, chosen, explain, languages, translator
from cipherbox.errors import CipherBoxError, NetworkError, NotFound, ProtocolError
from cipherbox.readable import age_text, local_time, size_text

HERE = Path(__file__).parent
STATIC = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "scan.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
THEMES = ("", "light", "dark")
FOR_KEYS = "keys"  # a page of a home with keys
FOR_ADMIN = "admin"


async def settings(view: View) -> Response:
    """Return the form of what a user sets in the page."""
    return await view.page("settings.html", languages=languages())


async def choose(view: View) -> Response:
    """Keep what a user set."""
    fields = await view.form()
    language, theme = fields.one("language"), fields.one("theme")
    await view.desk.choose(
        language=language if language in languages() else "",
        theme=theme if theme in THEMES else "",
        shown=fields.one("shown") == "yes",
    )
    return view.go("/settings", "kept")


# method, path, handler, who has it: everybody, homes with keys, or admins
PAGES: tuple[tuple[str, str, Handler, str], ...] = (
    ("GET", "/messages", messages.listing, FOR_KEYS),
    ("GET", "/messages/{message_id}", messages.one, FOR_KEYS),
    ("GET", "/messages/{message_id}/content", messages.content, FOR_KEYS),
    ("GET", "/sent", sent.listing, FOR_KEYS),
    ("GET", "/sent/{message_id}", sent.one, FOR_KEYS),
    ("POST", "/sent/{message_id}/retry", sent.retry, FOR_KEYS),
    ("POST", "/sent/{message_id}/cancel", sent.cancel, FOR_KEYS),
    ("GET", "/sent/{message_id}/receipt/{recipient}", proof.export, FOR_KEYS),
    ("GET", "/write", writing.form, FOR_KEYS),
    ("POST", "/write", writing.send, FOR_KEYS),
    ("PUT", "/upload", writing.upload, FOR_KEYS),
    ("GET", "/people", people.listing, ""),
    ("GET", "/people/{client_id}", people.one, ""),
    ("POST", "/people/{client_id}/compare", people.compare, ""),
    ("POST", "/people/{client_id}/reseal", people.reseal, FOR_KEYS),
    ("GET", "/trouble", trouble.listing, ""),
    ("POST", "/trouble", trouble.diagnose, ""),
    ("POST", "/trouble/seen", trouble.seen, FOR_KEYS),
    ("POST", "/trouble/retry", trouble.retry, FOR_KEYS),
    ("GET", "/proof", proof.form, ""),
    ("POST", "/proof", proof.verify, ""),
    ("GET", "/console", console.glance, FOR_ADMIN),
    ("GET", "/console/routes", console.routes, FOR_ADMIN),
    ("GET", "/console/clients", console.clients, FOR_ADMIN),
    ("GET", "/console/dead", console.dead, FOR_ADMIN),
    ("GET", "/console/hq", console.hq, FOR_ADMIN),
    ("GET", "/console/log", console.log, FOR_ADMIN),
    ("POST", "/console/approve", console.approve, FOR_ADMIN),
    ("POST", "/console/revoke", console.revoke, FOR_ADMIN),
    ("POST", "/console/limit", console.limit, FOR_ADMIN),
    ("POST", "/console/clients", console.enrol, FOR_ADMIN),
    ("POST", "/console/kick", console.kick, FOR_ADMIN),
    ("POST", "/console/purge", console.purge, FOR_ADMIN),
    ("POST", "/console/clock", console.confirm_clock, FOR_ADMIN),
    ("POST", "/console/dead", console.settle, FOR_ADMIN),
    ("GET", "/manual", handbook.index, ""),
    ("GET", "/manual/{name}", handbook.one, ""),
    ("GET", "/settings", settings, ""),
    ("POST", "/settings", choose, ""),
    ("GET", "/live", live, ""),
)


class Site:
    """See the module; ``app`` is the ASGI application behind the guard."""

    def __init__(self, client_id: str, door: Door, helpers: Helpers) -> None:
        self.desk: Desk | None = None
        self._client_id, self._door, self._helpers = client_id, door, helpers
        self._nursery: trio.Nursery | None = None
        self.app = Starlette(
            routes=[
                Route("/", self._home),
                Route("/enter", self._enter_form),
                Route("/enter", self._enter, methods=["POST"]),
                Route("/lock", self._lock, methods=["POST"]),
                Route("/static/{name}", _static),
                *(
                    Route(path, self._handled(handler, whose), methods=[method])
                    for method, path, handler, whose in PAGES
                ),
            ],
            exception_handlers={
                BodyTooLarge: _too_large,
                CipherBoxError: self._failed,
                HTTPException: self._failed,
                Exception: self._broken,
            },
        )
        self.app.state.door = door

    def attend(self, desk: Desk, nursery: trio.Nursery) -> None:
        """Show this desk from now on; tasks that a page begins run in the nursery."""
        self.desk, self._nursery = desk, nursery

    # -- entering ----------------------------------------------------------------------------------

    async def _home(self, request: Request) -> Response:
        keyless = self.desk is not None and self.desk.keyless
        return RedirectResponse("/console" if keyless else "/messages", 303)

    async def _enter_form(self, request: Request) -> Response:
        return self._login(request)

    async def _enter(self, request: Request) -> Response:
        fields = await read_form(request)
        if self._door.by_password and request.headers.get("origin") != self._door.origin:
            return self._login(request, 403)
        cookie = await self._door.enter(
            fields.one("password" if self._door.by_password else "code")
        )
        if cookie is None:
            return self._login(request, 401, wrong=True)
        # A page, not a redirect: a browser that comes from a local file would not send the cookie.
        response = self._plain(request, "entered.html", 200)
        response.set_cookie(COOKIE, cookie, secure=True, httponly=True, samesite="strict", path="/")
        return response

    async def _lock(self, request: Request) -> Response:
        self._door.lock(cookie_of(request.headers))
        if self.desk is not None:
            self.desk.changed.notify()  # its other tabs
        response = RedirectResponse("/enter", 303)
        response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")
        return response

    def _login(self, request: Request, status: int = 200, *, wrong: bool = False) -> Response:
        return self._plain(
            request, "enter.html", status, wrong=wrong, by_password=self._door.by_password
        )

    # -- drawing -----------------------------------------------------------------------------------

    def _handled(self, handler: Handler, whose: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            view = self._view(request)
            if whose == FOR_KEYS and view.desk.keyless:
                raise NotFound("an admin's home has no messages")
            if whose == FOR_ADMIN and view.desk.client.role != "admin":
                raise NotFound("this page needs an admin's home")
            try:
                return await handler(view)
            except (LookupError, TypeError, ValueError, jinja2.UndefinedError) as error:
                if whose != FOR_ADMIN:
                    raise
                # the console shows rows of HQ's, which may be of another version, or hostile
                raise ProtocolError(
                    "HQ's answer has a form that this version does not know"
                ) from error

        return answer

    def _view(self, request: Request) -> View:
        assert self.desk is not None
        assert self._nursery is not None  # nobody is inside before the client is open
        language = chosen(self.desk.choices.language, request.headers.get("accept-language", ""))
        return View(
            request,
            self.desk,
            self._nursery,
            self._helpers,
            language,
            translator(language),
            self._draw,
        )

    def _draw(self, template: str, translate: Translate, language: str, **values: Any) -> str:
        return (
            _templates()
            .get_template(template)
            .render(_=translate, language=language, client=self._client_id, **values)
        )

    def _plain(self, request: Request, template: str, status: int, **values: Any) -> Response:
        """Return a page for somebody who is not inside: nothing of the home is on it."""
        choices = self.desk.choices if self.desk is not None else PageChoices()
        language = chosen(choices.language, request.headers.get("accept-language", ""))
        html = self._draw(template, translator(language), language, choices=choices, **values)
        return HTMLResponse(html, status)

    async def _failed(self, request: Request, error: Exception) -> Response:
        """Return an error as a page: what happened, and what to do."""
        if isinstance(error, HTTPException):
            status, error = error.status_code, NotFound("there is no such page")
        else:
            status = 404 if isinstance(error, NotFound) else 400
            status = 503 if isinstance(error, NetworkError) else status
        if self.desk is None:
            return PlainTextResponse(str(error), status)
        return await self._view(request).page("error.html", status, error=error)

    async def _broken(self, request: Request, error: Exception) -> Response:
        """Report an internal error, whose values may be of a message: the page shows none."""
        self._helpers.on_bug(error)
        return PlainTextResponse(
            "Internal error. The program that serves this page says more.", 500
        )


@functools.cache
def _templates() -> jinja2.Environment:
    """Return the templates, each compiled at its first use; for all pages of this process."""
    found = environment(str(HERE / "templates"))
    found.filters |= {
        "size": size_text,
        "age": age_text,
        "time": time_text,
        "iso": iso_time,
        "said_at": said_at,
        "explained": explain,
    }
    return found


async def _static(request: Request) -> Response:
    """Return a file that pages are drawn with, under a type that no system's tables change."""
    name = str(request.path_params["name"])
    kind = STATIC.get(name)
    if kind is None:
        raise HTTPException(404)
    return Response((HERE / "static" / name).read_bytes(), media_type=kind)


async def _too_large(request: Request, error: Exception) -> Response:
    return PlainTextResponse("The request is too large.", 413)


def time_text(ms: int) -> str:
    """Return a time of this machine: the hour today, the day before."""
    if not ms:
        return "-"
    then = local_time(ms)
    if then is None:
        return f"{ms} ms"
    now = local_time(clock.now_ms())
    today = now is not None and then.date() == now.date()
    return f"{then:%H:%M:%S}" if today else f"{then:%Y-%m-%d %H:%M}"


def said_at(text: object) -> int:
    """Return a sender's time, as text of RFC 3339, in ms since 1970; 0 if it is none."""
    try:
        return int(datetime.datetime.fromisoformat(str(text)).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        return 0


def iso_time(ms: int) -> str:
    """Return a time for programs that read the page."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))
    except (ValueError, OverflowError, OSError):
        return ""
