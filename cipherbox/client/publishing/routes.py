"""What HQ last said about each route this client sends to, in ``routes.json``: so that it can seal
while HQ is away.

HQ refuses an envelope whose route has changed meanwhile, and the allow-list is asked every time, so
an old answer can neither reach the wrong readers nor lose anything.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from cipherbox.errors import InvalidRequest
from cipherbox.portable import write_private
from cipherbox.wire import frames

FILE = "routes.json"
MOST = 1000  # routes kept; the oldest go
BOXES = {"": "", "bulk": ".bulk", "sys": ".sys"}  # of a recipient's mailbox -> routing key
Where = tuple[str, str]


class Routes:
    """Exchange and routing key -> HQ's answer."""

    def __init__(self, home: Path) -> None:
        self._path = Path(home) / FILE
        self._kept: dict[Where, frames.Route] | None = None

    def get(self, where: Where) -> frames.Route | None:
        """The last answer, or None."""
        return self._load().get(where)

    def put(self, where: Where, route: frames.Route) -> None:
        """Keeps an answer; a disk that does not take it only costs sending while HQ is away."""
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
    """A session is between two: a second reader of the queue could not open what is in it."""
    for queue in route.queues:
        if len(queue.readers) != 1:
            raise InvalidRequest(
                f"{len(queue.readers)} clients read queue {queue.queue!r}; a session has two ends. "
                "Send to each by name, or without stanza 'ratchet'"
            )


def is_mailbox(exchange: str, routing_key: str) -> bool:
    """Whether it goes to its recipients' own mailboxes: each of them can be left out."""
    return not exchange and routing_key in BOXES.values()
