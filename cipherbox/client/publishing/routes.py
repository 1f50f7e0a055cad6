"""HQ's last answer for each route this client sends to, cached in ``routes.json`` so that it can
seal while HQ is unreachable.

HQ refuses an envelope whose route has changed since, and the allow-list is checked every time: an
old answer neither reaches the wrong readers nor loses anything.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from cipherbox.errors import InvalidRequest
from cipherbox.portable import write_private
from cipherbox.wire import frames

FILE = "routes.json"
MOST = 1000  # routes kept; the oldest are dropped
BOXES = {"": "", "bulk": ".bulk", "sys": ".sys"}  # of a recipient's mailbox -> routing key
Where = tuple[str, str]


class Routes:
    """The cached answers, by exchange and routing key."""

    def __init__(self, home: Path) -> None:
        self._path = Path(home) / FILE
        self._kept: dict[Where, frames.Route] | None = None

    def get(self, where: Where) -> frames.Route | None:
        """Return the last answer, or None."""
        return self._load().get(where)

    def put(self, where: Where, route: frames.Route) -> None:
        """Keep an answer; a failed write only prevents sealing while HQ is unreachable."""
        kept = self._load()
        if kept.get(where) == route:
            return
        kept.pop(where, None)
        kept[where] = route
        while len(kept) > MOST:
            del kept[next(iter(kept))]
        rows = [
            [*key, r.version, [[q.queue, list(q.readers)] for q in r.queues]]
            for key, r in kept.items()
        ]
        try:
            write_private(self._path, orjson.dumps(rows))
        except OSError:
            return

    def _load(self) -> dict[Where, frames.Route]:
        if self._kept is None:
            self._kept = {}
            try:
                for exchange, key, version, queues in orjson.loads(self._path.read_bytes()):
                    found = [frames.RouteQueue(queue, list(readers)) for queue, readers in queues]
                    self._kept[(exchange, key)] = frames.Route(0, version, found)
            except (OSError, ValueError, TypeError):
                self._kept = {}  # it is asked for again
        return self._kept


def check_one_reader(route: frames.Route) -> None:
    """Raise InvalidRequest if a queue has several readers: a session has two ends."""
    for queue in route.queues:
        if len(queue.readers) != 1:
            raise InvalidRequest(
                f"{len(queue.readers)} clients read queue {queue.queue!r}; a session has two ends. "
                "Send to each by name, or without stanza 'ratchet'"
            )


def is_mailbox(exchange: str, routing_key: str) -> bool:
    """Return whether it goes to the recipients' own mailboxes, so that each can be left out."""
    return not exchange and routing_key in BOXES.values()
