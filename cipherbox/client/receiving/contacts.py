"""Whom this client takes mail from: everybody HQ's CA certified, until a person says otherwise.

``contacts.json`` holds two lists of client ids.  Programs of this home that run look at the file,
so a change counts at the next envelope; what they refuse is a dead letter at HQ, which can be
redriven, and its sender gets a signed receipt.

HQ is told the lists, unless `[contacts] tell_hq` says no, and refuses a publish that would end like
that.  That spares the way and nothing else: the inbox decides, whatever HQ knows.  WELCOME says
which lists HQ has, by their digest, so nothing is told twice; of several programs of one home each
goes on until HQ has what the file says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import trio

from cipherbox.client.events import LINE
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    CredentialsError,
    InvalidRequest,
    NetworkError,
)
from cipherbox.limits import LIMITS, check_client_id
from cipherbox.portable import write_atomic
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.connection.connection import Connection

FILE = "contacts.json"
_NO_LISTS = ContactLists()
LOOK_S = 1.0  # a running program looks so often whether HQ has the lists of now


class Contacts:
    """The lists of one home; the file is read again whenever it changed."""

    def __init__(self, home: Path) -> None:
        self._path = Path(home) / FILE
        self._stamp: tuple[int, int, int] | None = None
        self._lists = _NO_LISTS

    def lists(self) -> ContactLists:
        """Both lists as they are now.  ConfigError if the file is not one."""
        try:
            found = os.stat(self._path)
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
        except FileNotFoundError:
            self._stamp, self._lists = None, _NO_LISTS
            return self._lists
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None
        if stamp != self._stamp:
            self._lists, self._stamp = self._read(), stamp
        return self._lists

    def accepts(self, client_id: str) -> bool:
        """Whether this client's mail is taken."""
        return self.lists().accepts(client_id)

    def allow(self, client_ids: Iterable[str]) -> ContactLists:
        """Takes these from now on, and nobody who is not allowed; they are blocked no longer."""
        names, before = _checked(client_ids), self.lists()
        return self._write(
            ContactLists(_union(before.allowed, names), _without(before.blocked, names))
        )

    def block(self, client_ids: Iterable[str]) -> ContactLists:
        """Refuses these from now on; with the last who was allowed, nobody else is taken
        instead.
        """
        names, before = _checked(client_ids), self.lists()
        # an empty list would let everybody in
        allowed = _without(before.allowed, names) or before.allowed
        return self._write(ContactLists(allowed, _union(before.blocked, names)))

    def unblock(self, client_ids: Iterable[str]) -> ContactLists:
        """Takes these off the list of those blocked, and nothing else."""
        before = self.lists()
        return self._write(
            ContactLists(before.allowed, _without(before.blocked, _checked(client_ids)))
        )

    def allow_everybody(self) -> ContactLists:
        """Takes everybody again who is not blocked."""
        return self._write(ContactLists((), self.lists().blocked))

    def _read(self) -> ContactLists:
        try:
            document = orjson.loads(self._path.read_bytes())
            return ContactLists(
                _checked(document.get("allowed", ())), _checked(document.get("blocked", ()))
            )
        except (
            OSError,
            orjson.JSONDecodeError,
            AttributeError,
            TypeError,
            InvalidRequest,
        ) as error:
            raise ConfigError(f"{self._path} is not a list of contacts: {error}") from None

    def _write(self, lists: ContactLists) -> ContactLists:
        document = {"allowed": lists.allowed, "blocked": lists.blocked}
        write_atomic(self._path, orjson.dumps(document, option=orjson.OPT_INDENT_2))
        return self.lists()


def _checked(client_ids: Iterable[object]) -> tuple[str, ...]:
    return tuple(check_client_id(str(name)) for name in client_ids)


def _union(names: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*_without(names, more), *more}))


def _without(names: tuple[str, ...], gone: tuple[str, ...]) -> tuple[str, ...]:
    folded = set(map(str.casefold, gone))
    return tuple(name for name in names if name.casefold() not in folded)


class Telling:
    """Keeps HQ at what the file says."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._contacts = Contacts(client.home.path)
        self._link: Connection | None = None
        self._told = b""  # digest of what HQ has

    async def tell(self) -> bool:
        """Tells HQ what it does not have yet; whether there was something to tell.

        The file is read again afterwards: whoever changed it meanwhile may have told HQ before this
        did.
        """
        line, changed = self._client.line, False
        while True:
            link = await line.ready(line.tries)
            if link is not self._link:
                self._link, self._told = link, link.welcome.contacts
            lists = self._wanted()
            if lists.digest == self._told:
                return changed
            self._told = b"?"  # unknown until HQ has answered
            await line.request(
                frames.TellContacts, allowed=list(lists.allowed), blocked=list(lists.blocked)
            )
            self._told, changed = lists.digest, True

    def _wanted(self) -> ContactLists:
        if not self._client.home.config.contacts.tell_hq:
            return ContactLists()
        lists = self._contacts.lists()
        # part of a list would mean something else
        return lists if len(lists) <= LIMITS.names_per_frame else ContactLists()


async def keep_told(client: Client) -> None:
    """Tells HQ the lists with each connection and whenever they change, until cancelled or the
    line has failed.
    """
    telling, said = Telling(client), ""
    while client.line.failure is None:
        try:
            await client.line.ready()
            if await telling.tell():
                client.events.say(LINE, "HQ knows whom mail is taken from")
            said = ""
        except CipherBoxError as error:
            # the inbox goes by the file all the same; it is tried again
            # those the line tells
            if str(error) != said and not isinstance(error, NetworkError | CredentialsError):
                said = str(error)
                client.events.say(LINE, f"HQ was not told whom mail is taken from: {error}")
        await trio.sleep(LOOK_S)


__all__ = ["FILE", "ContactLists", "Contacts", "Telling", "keep_told"]
