"""Whom this client takes mail from: everybody HQ's CA certified, until a person says otherwise.

``contacts.json`` holds two lists of client ids.  Who is *blocked* is refused.  As soon as somebody is *allowed*, only
those are taken; blocked wins over allowed.  The file stays on this machine: HQ does not learn it, and the sender
learns from a signed receipt that its message was not accepted.  Programs of this home that run look at the file, so a
change counts at the next envelope.  Nothing is deleted: what is refused is a dead letter at HQ, which can be redriven.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs
import orjson

from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.portable import write_atomic

FILE = "contacts.json"


@attrs.frozen
class Lists:
    """Client ids as a person wrote them; they are compared without regard to case."""

    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    def accepts(self, client_id: str) -> bool:
        """Whether this client's mail is taken."""
        name = client_id.casefold()
        if name in map(str.casefold, self.blocked):
            return False
        return not self.allowed or name in map(str.casefold, self.allowed)


class Contacts:
    """The lists of one home; the file is read again whenever it changed."""

    def __init__(self, home: Path) -> None:
        self._path = Path(home) / FILE
        self._stamp: tuple[int, int, int] | None = None
        self._lists = Lists()

    def lists(self) -> Lists:
        """Both lists as they are now.  ConfigError if the file is not one."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns, found.st_size
        except FileNotFoundError:
            self._stamp, self._lists = None, Lists()
            return self._lists
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None
        if stamp != self._stamp:
            self._lists, self._stamp = self._read(), stamp
        return self._lists

    def accepts(self, client_id: str) -> bool:
        """Whether this client's mail is taken."""
        return self.lists().accepts(client_id)

    def allow(self, client_ids: Iterable[str]) -> Lists:
        """Takes these from now on, and nobody who is not allowed; they are blocked no longer."""
        names, before = _checked(client_ids), self.lists()
        return self._write(Lists(_union(before.allowed, names), _without(before.blocked, names)))

    def block(self, client_ids: Iterable[str]) -> Lists:
        """Refuses these from now on."""
        names, before = _checked(client_ids), self.lists()
        return self._write(Lists(_without(before.allowed, names), _union(before.blocked, names)))

    def unblock(self, client_ids: Iterable[str]) -> Lists:
        """Takes these off the list of those blocked, and nothing else."""
        before = self.lists()
        return self._write(Lists(before.allowed, _without(before.blocked, _checked(client_ids))))

    def allow_everybody(self) -> Lists:
        """Takes everybody again who is not blocked."""
        return self._write(Lists((), self.lists().blocked))

    def _read(self) -> Lists:
        try:
            document = orjson.loads(self._path.read_bytes())
            return Lists(_checked(document.get("allowed", ())), _checked(document.get("blocked", ())))
        except (OSError, orjson.JSONDecodeError, AttributeError, TypeError, InvalidRequest) as error:
            raise ConfigError(f"{self._path} is not a list of contacts: {error}") from None

    def _write(self, lists: Lists) -> Lists:
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
