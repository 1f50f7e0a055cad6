"""Exchanges and bindings, as in AMQP 0-9-1: direct, fanout and topic.

A topic pattern and a routing key are words separated by dots; `*` matches exactly one word, `#` any
number of words, including none.  An empty key has no words.  Keys without wildcards are looked up,
patterns are matched one by one.
"""

from __future__ import annotations

from functools import lru_cache

from cipherbox.broker.model import ExchangeType

_CACHED_ROUTES = 10_000  # of one exchange


@lru_cache(maxsize=65_536)
def topic_matches(pattern: str, routing_key: str) -> bool:
    """Return whether a topic pattern matches a routing key.

    It tracks the set of positions the pattern can be at, so the time grows with the product of
    their lengths in words.
    """
    words = _words(pattern)
    reach = _skip_hashes({0}, words)
    for word in _words(routing_key):
        step = set()
        for at in reach:
            if at < len(words):
                if words[at] == "#":
                    step.add(at)
                elif words[at] in ("*", word):
                    step.add(at + 1)
        reach = _skip_hashes(step, words)
    return len(words) in reach


def _words(text: str) -> list[str]:
    return text.split(".") if text else []


def _skip_hashes(positions: set[int], words: list[str]) -> set[int]:
    found = set(positions)
    for at in positions:
        while at < len(words) and words[at] == "#":
            at += 1
            found.add(at)
    return found


class Exchange:
    """One exchange and its bindings."""

    def __init__(self, name: str, kind: ExchangeType) -> None:
        self.name = name
        self.kind = kind
        self.bindings: set[tuple[str, str]] = set()  # (queue, routing key)
        self._exact: dict[str, set[str]] = {}  # routing key -> queues
        self._patterns: set[tuple[str, str]] = set()  # bindings that must be matched
        self._routes: dict[str, tuple[str, ...]] = {}  # cached until bindings change

    def bind(self, queue: str, routing_key: str) -> bool:
        """Add a binding; return False if it exists."""
        binding = (queue, routing_key)
        if binding in self.bindings:
            return False
        self._routes.clear()
        self.bindings.add(binding)
        if self._is_pattern(routing_key):
            self._patterns.add(binding)
        else:
            self._exact.setdefault(routing_key, set()).add(queue)
        return True

    def unbind(self, queue: str, routing_key: str) -> bool:
        """Remove a binding; return False if it does not exist."""
        binding = (queue, routing_key)
        if binding not in self.bindings:
            return False
        self._routes.clear()
        self.bindings.discard(binding)
        self._patterns.discard(binding)
        queues = self._exact.get(routing_key)
        if queues is not None:
            queues.discard(queue)
            if not queues:
                del self._exact[routing_key]
        return True

    def _is_pattern(self, routing_key: str) -> bool:
        if self.kind is ExchangeType.TOPIC:
            return not {"*", "#"}.isdisjoint(routing_key.split("."))
        return self.kind is ExchangeType.FANOUT

    def route(self, routing_key: str) -> tuple[str, ...]:
        """Return the names of the queues this key routes to, sorted."""
        found = self._routes.get(routing_key)
        if found is None:
            if len(self._routes) >= _CACHED_ROUTES:
                self._routes.clear()
            queues = {queue for queue, bound in self._patterns if self._matches(bound, routing_key)}
            queues |= self._exact.get(routing_key, set())
            found = self._routes[routing_key] = tuple(sorted(queues))
        return found

    def _matches(self, pattern: str, routing_key: str) -> bool:
        return self.kind is ExchangeType.FANOUT or topic_matches(pattern, routing_key)
