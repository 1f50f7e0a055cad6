"""Contact lists: the senders this client accepts mail from. By default all that HQ's CA certified.

``contacts.json`` holds two lists of client ids.  Running programs of this home reread the file for
each step of opening (at most a quarter of a second), so a change applies to the next one.  A
refused envelope becomes a dead letter at HQ, which can be redriven, and its sender gets a signed
receipt.

The lists are also uploaded to HQ (`contacts_upload`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import orjson

from cipherbox.contact_lists import ContactLists
from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.portable import write_atomic

FILE = "contacts.json"
_NO_LISTS = ContactLists()


class Contacts:
    """The lists of one home; the file is read again whenever it changed."""

    def __init__(self, home: Path) -> None:
        self._path = Path(home) / FILE
        self._stamp: tuple[int, int, int] | None = None
        self._lists = _NO_LISTS

    def lists(self) -> ContactLists:
        """Return both lists as they are now; raise ConfigError if the file is invalid."""
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

    def allow(self, client_ids: Iterable[str]) -> ContactLists:
        """Allow these clients and, from now on, only allowed ones; unblock them."""
        names, before = _checked(client_ids), self.lists()
        return self._write(
            ContactLists(_union(before.allowed, names), _without(before.blocked, names))
        )

    def block(self, client_ids: Iterable[str]) -> ContactLists:
        """Block these clients. Blocking the last allowed one does not allow everybody else."""
        names, before = _checked(client_ids), self.lists()
        # an empty list would accept everybody
        allowed = _without(before.allowed, names) or before.allowed
        return self._write(ContactLists(allowed, _union(before.blocked, names)))

    def unblock(self, client_ids: Iterable[str]) -> ContactLists:
        """Remove these clients from the block list; change nothing else."""
        before = self.lists()
        return self._write(
            ContactLists(before.allowed, _without(before.blocked, _checked(client_ids)))
        )

    def allow_everybody(self) -> ContactLists:
        """Accept everybody who is not blocked."""
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


__all__ = ["FILE", "ContactLists", "Contacts"]
