"""The door of the page: where it is, who may enter, and until when.

1. The page has a name of its own, ``NAME.localhost``, random and new at each start: a cookie of
   127.0.0.1 would reach every other port of this machine, and a name that nobody knows is asked for
   by nobody.
2. Keys under a password are opened with that password, in the page.  Without one a code is needed,
   which works once; it is in ``page.json``, which only this user can read, and in ``page.html``,
   the file that a browser is opened with.  So neither name nor code is in a list of processes, and
   whoever may read the home may enter.
3. Who has entered has a cookie of 256 random bits, known to this process alone: it ends with the
   process, after an idle time, and with `lock`.
4. One attempt at a time, and a pause after each wrong one.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from html import escape
from pathlib import Path

import orjson
import trio

from cipherbox.classes import frozen
from cipherbox.portable import write_atomic

COOKIE = "__Host-cipherbox"
STATE, OPENER = "page.json", "page.html"
LOCK = "page.lock"
WRONG_S = 1.0
MOST = 8  # browsers that are logged in; the one idle for the longest is logged out
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without those that look alike

Check = Callable[[str], Awaitable[bool]]


@frozen
class Address:
    """What `page.json` says: where the page is, and the code, empty if a password is asked for."""

    url: str
    code: str


def read_address(home: Path) -> Address | None:
    """Return the address of the page that runs for this home, or None."""
    try:
        found = orjson.loads((home / STATE).read_bytes())
        return Address(str(found["url"]), str(found["code"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_opener(address: Address, folder: Path) -> Path:
    """Write the file that a browser is opened with, and return its path; it is deleted when its
    code is used.
    """
    url = escape(address.url)
    if address.code:
        form = (
            f'<form method="post" action="{url}enter"><input type="hidden" name="code" '
            f'value="{escape(address.code)}"><button>CipherBox</button></form>'
            "<script>document.forms[0].submit()</script>"
        )
    else:
        form = f'<meta http-equiv="refresh" content="0; url={url}"><a href="{url}">CipherBox</a>'
    path = folder / OPENER
    write_atomic(
        path, f'<!doctype html><meta charset="utf-8"><title>CipherBox</title>{form}'.encode(), 0o600
    )
    return path


def new_code() -> str:
    """Return a code of 79 random bits that can be typed."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(16))
    return "-".join(letters[at : at + 4] for at in range(0, 16, 4))


class Door:
    """See the module.  ``by_password``: the keys are under one, which ``check`` verifies;
    ``folder`` is where `page.html` is written.
    """

    def __init__(
        self, home: Path, folder: Path, idle_s: float, by_password: bool, check: Check
    ) -> None:
        self.by_password = by_password
        self._home, self._folder, self._idle_s, self._check = home, folder, idle_s, check
        self.host = ""
        self.code = ""
        self._inside: dict[str, float] = {}  # cookie -> when it was used last
        self._turn = trio.Lock()

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    def open(self, port: int) -> None:
        """Choose the name, and write where the page is."""
        self.host = f"{secrets.token_hex(16)}.localhost:{port}"
        self._write()

    def close(self) -> None:
        """Log everybody out, and delete the files."""
        self._inside.clear()
        for path in (self._home / STATE, self._folder / OPENER):
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        self.code = "" if self.by_password else new_code()
        address = {"url": f"{self.origin}/", "code": self.code}
        write_atomic(self._home / STATE, orjson.dumps(address), 0o600)

    async def enter(self, secret: str) -> str | None:
        """Return a new cookie if this is the code or the password, else None after a pause."""
        async with self._turn:
            if not await self._right(secret):
                await trio.sleep(WRONG_S)
                return None
            if len(self._inside) >= MOST:
                del self._inside[min(self._inside, key=lambda cookie: self._inside[cookie])]
            cookie = secrets.token_urlsafe(32)
            self._inside[cookie] = trio.current_time()
            return cookie

    async def _right(self, secret: str) -> bool:
        if self.by_password:
            return await self._check(secret)
        typed = secret.strip().lower().encode()
        if not secrets.compare_digest(typed, self.code.encode()):
            return False
        self._write()  # it works once
        (self._folder / OPENER).unlink(missing_ok=True)
        return True

    def admits(self, cookie: str, *, active: bool) -> bool:
        """Return whether this cookie is inside; ``active``: a person did something."""
        used = self._inside.get(cookie)
        if used is None:
            return False
        now = trio.current_time()
        if now - used > self._idle_s:
            del self._inside[cookie]
            return False
        if active:
            self._inside[cookie] = now
        return True

    def lock(self, cookie: str) -> None:
        """Log this browser out."""
        self._inside.pop(cookie, None)
