"""One request as its handler sees it: the desk, the form, the language, and how to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlencode

import jinja2
import trio
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from cipherbox.apps.page.desk import Desk
from cipherbox.apps.page.guard import LIVE
from cipherbox.apps.page.words import Explained, Translate, explain
from cipherbox.classes import frozen
from cipherbox.client.client import Client
from cipherbox.client.home import Home
from cipherbox.errors import CipherBoxError, InvalidRequest

BODY_S = 30.0  # how long a form may take to arrive
_FIELDS = 2000
# what is said on the page that follows an act
SAID = {
    "sent": "Sealed and kept on this machine. It is sent as soon as HQ can be reached.",
    "compared": "They agree. The keys are marked as compared.",
    "retried": "It will be tried again.",
    "cancelled": "It will not be sent.",
    "resealed": "Sealed again for the keys of today.",
    "seen": "Marked as seen.",
    "kept": "The settings are kept.",
    "approved": "The enrolment was approved.",
    "rejected": "The enrolment was rejected.",
    "redriven": "The dead letters are in their queue again.",
    "discarded": "The dead letters were discarded.",
    "revoked": "The client was revoked, and its connections were closed.",
    "limited": "The limit was set.",
    "kicked": "The connection was closed; the client may come back.",
    "purged": "What waited in the queue is among the dead letters now.",
    "confirmed": "HQ's clock was confirmed.",
}


class Finding(Protocol):
    """A finding of `doctor`: ``level`` is good, warning or wrong; ``kind`` the meaning of the error
    that it is, if it is one.
    """

    @property
    def level(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def text(self) -> str: ...

    @property
    def todo(self) -> str: ...

    @property
    def kind(self) -> str: ...


class LogLine(NamedTuple):
    """One act in HQ's signed log; ``at`` is ms since 1970."""

    entry: int
    at: int
    who: str
    what: str


@frozen
class Helpers:
    """What the page shows and the layers above it know: a diagnosis of this machine, a report on
    HQ and the latest entries of its signed log for its admin, and the manual's pages by name;
    ``on_bug`` is told of an internal error.
    """

    diagnose: Callable[[Home], Iterable[Finding]]  # blocks
    report: Callable[[Client], Awaitable[dict[str, Any]]]
    log: Callable[[Client, int], Awaitable[list[LogLine]]]
    manual: Callable[[], dict[str, str]]
    on_bug: Callable[[Exception], None]


class Form:
    """The fields of a form; a name may occur several times."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def one(self, name: str) -> str:
        return next((value for key, value in self._pairs if key == name), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]


@frozen
class View:
    """See the module."""

    request: Request
    desk: Desk
    nursery: trio.Nursery
    helpers: Helpers
    language: str
    translate: Translate
    draw: Callable[..., str]

    @property
    def query(self) -> QueryParams:
        return self.request.query_params

    @property
    def redrawn(self) -> bool:
        """Return whether the page draws itself anew, and no person asked for it."""
        return LIVE in self.request.headers

    def given(self, name: str) -> str:
        """Return a part of the path."""
        return str(self.request.path_params[name])

    async def form(self) -> Form:
        """Return the fields of a posted form."""
        return await read_form(self.request)

    async def page(self, template: str, status: int = 200, **values: object) -> Response:
        """Return a page, with what every page shows: alarms, and whether HQ is reached."""
        connection = self.desk.client.connection
        failure = (
            connection.failure or self.desk.failure or self.desk.trouble
        )  # which no new attempt can mend
        if isinstance(error := values.get("error"), CipherBoxError):
            values["error"] = self.explained(error)
        known: dict[str, object] = {
            "alarms": await self.desk.key_alarms(),
            "forged": await self.desk.unseen(),
            "connected": connection.current is not None,
            "away": str(connection.trouble or ""),
            "failure": self.explained(failure) if failure is not None else None,
            "said": SAID.get(self.query.get("said", ""), ""),
            "admin": self.desk.client.role == "admin",
            "keyless": self.desk.keyless,
            "choices": self.desk.choices,
            "here": self.request.url.path,
            "shows_all": self.desk.choices.shown,
        }
        html = self.draw(template, self.translate, self.language, **known, **values)
        return HTMLResponse(html, status)

    def explained(self, error: CipherBoxError) -> Explained:
        """Return an error in the user's language."""
        return explain(error, self.language)

    def go(self, path: str, said: str = "") -> Response:
        """Return the way to another page, after an act."""
        return RedirectResponse(f"{path}?{urlencode({'said': said})}" if said else path, 303)

    async def refuse(self, error: CipherBoxError, template: str, **values: object) -> Response:
        """Return a page with what went wrong and what to do about it."""
        return await self.page(template, 400, error=error, **values)


async def read_form(request: Request) -> Form:
    """Return the fields of a posted form; raise InvalidRequest if there are none in time."""
    with trio.move_on_after(BODY_S):
        body = await request.body()
        try:
            return Form(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_FIELDS))
        except ValueError:
            raise InvalidRequest("this is no form") from None
    raise InvalidRequest("the form did not arrive in time")


Handler = Callable[[View], Awaitable[Response]]


def environment(folder: str) -> jinja2.Environment:
    """Return the templates' environment: everything is escaped, an unknown name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
