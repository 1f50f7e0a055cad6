"""The allow-list: the recipients that this sender permits behind each exchange.

HQ states the readers of a route; the sender decides whether they may read.  ``allow.json`` maps an
exchange's name to client ids, or to "*": every client certified by this HQ's CA.  An exchange
without an entry permits no one.  The default exchange has the empty name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import orjson

from cipherbox.checks import checked
from cipherbox.errors import ConfigError, InvalidRequest, NotAllowed
from cipherbox.limits import check_client_id
from cipherbox.portable import write_atomic

FILE = "allow.json"
ANYBODY = "*"
Allowed = list[str] | str  # client ids, or "*"


@checked
class AllowList:
    """The lists of one home; every method reads the file anew, so that several processes agree."""

    def __init__(self, home: Path | str) -> None:
        self._path = Path(home) / FILE

    def entries(self) -> dict[str, Allowed]:
        """Return the list of each exchange; raise ConfigError if the file is invalid."""
        try:
            document = orjson.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, orjson.JSONDecodeError) as error:
            raise ConfigError(f"{self._path} cannot be read: {error}") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{self._path} is an object: exchange name to list of client ids")
        found: dict[str, Allowed] = {}
        for exchange, allowed in document.items():
            if allowed == ANYBODY:
                found[exchange] = ANYBODY
                continue
            try:
                if not isinstance(allowed, list):
                    raise InvalidRequest("it is neither a list nor *")
                found[exchange] = [check_client_id(str(name)) for name in allowed]
            except InvalidRequest as error:
                text = (
                    f'{self._path}: {exchange!r} maps to client ids in a list, or to "*": {error}'
                )
                raise ConfigError(text) from None
        return found

    def allow(self, exchange: str, client_ids: Iterable[str] | None) -> None:
        """Permit these clients; None: every certified client."""
        entries = self.entries()
        before = entries.get(exchange, [])
        if client_ids is None or before == ANYBODY:
            entries[exchange] = ANYBODY
        else:
            entries[exchange] = sorted({*before, *map(check_client_id, client_ids)})
        self._write(entries)

    def remove(self, exchange: str, client_ids: Iterable[str] | None) -> None:
        """Remove these clients from a list; None: remove the list.  Raise InvalidRequest if it
        permits every client.
        """
        entries = self.entries()
        before = entries.get(exchange, [])
        if client_ids is None:
            entries.pop(exchange, None)
        elif before == ANYBODY:
            raise InvalidRequest(
                f"{exchange!r} permits anybody", remedy="take that away first, then name who may"
            )
        else:
            gone = set(client_ids)
            entries[exchange] = [name for name in before if name not in gone]
        self._write(entries)

    def check(self, exchange: str, client_ids: Iterable[str]) -> None:
        """Raise NotAllowed, with the names, if a client is not permitted."""
        allowed = self.entries().get(exchange, [])
        if allowed == ANYBODY:
            return
        strangers = sorted(set(client_ids) - set(allowed))
        if strangers:
            raise NotAllowed(
                f"exchange {exchange!r} leads to {', '.join(strangers)}, whom your allow-list "
                "for it does not hold; nothing was sent"
            )

    def _write(self, entries: dict[str, Allowed]) -> None:
        write_atomic(
            self._path, orjson.dumps(entries, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        )
