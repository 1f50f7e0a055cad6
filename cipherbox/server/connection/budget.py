"""What each kind of frame costs, and what a client may spend in a minute.

Every frame costs HQ time, and some cost disk: a declared queue is a commit with an entry in the
signed log.  So each kind has a row in `COSTS`, and a budget that it is taken from:

- *flow*: frames that move envelopes.  Their sender is read no further until its budget allows, so
  nothing is refused and nothing is lost; windows, credit and totals bound what is under way.
- *requests*: questions and changes.  Without budget they are refused as `throttled`, with the time
  to wait.
- *keys*, *prekeys*, *enrolment*: rates of their own.

All connections of a client share its budgets; those without a certificate share their address's.
An admin has twenty times as much: tools set up whole topologies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import trio

from cipherbox.errors import Throttled
from cipherbox.limits import Limits
from cipherbox.wire import frames as f
from cipherbox.wire.connection import SendBatch

FLOW, REQUESTS, KEYS, PREKEYS, ENROLMENT, CONNECTIONS = (
    "flow",
    "requests",
    "keys",
    "prekeys",
    "enrolment",
    "connections",
)
_ADMIN_SHARE = 20
NAMES = 100_000  # a rate remembers
_ENTRIES = 256  # of an ack: so many cost one point more


class Cost(NamedTuple):
    """Of one frame: from which budget, how many points, and why so many."""

    budget: str
    points: int
    why: str


_CHANGE = Cost(REQUESTS, 50, "a commit and an entry in the signed log")
_ADMIN = Cost(REQUESTS, 50, "admin only; a commit and an entry in the signed log")
_LOOK = Cost(REQUESTS, 20, "a page of up to 1,024 rows")
COSTS: dict[type, Cost] = {
    f.Hello: Cost(
        CONNECTIONS, 0, "once per connection; connections are limited by address and client"
    ),
    f.Ping: Cost(FLOW, 50, "a response"),
    f.Pong: Cost(FLOW, 1, "no work"),
    f.Error: Cost(FLOW, 1, "no work"),
    f.Send: Cost(FLOW, 1, "one row; bytes and envelopes count towards the totals"),
    f.Ack: Cost(FLOW, 1, "plus one for each 256 envelopes it names"),
    f.Nack: Cost(FLOW, 5, "a row, possibly a dead letter"),
    f.Credit: Cost(FLOW, 1, "opens a window"),
    f.Fetch: Cost(FLOW, 20, "may read a page from the store"),
    f.Consume: Cost(FLOW, 50, "a consumer"),
    f.Cancel: Cost(FLOW, 50, "unacknowledged envelopes are requeued"),
    f.Resend: Cost(REQUESTS, 20, "redelivers everything unacknowledged"),
    f.Resolve: Cost(REQUESTS, 1, "looks up a route"),
    f.Status: Cost(REQUESTS, 1, "two look-ups in an index"),
    f.GetRevocations: Cost(REQUESTS, 5, "the list, which may be large"),
    f.List: _LOOK,
    f.ListDead: _LOOK,
    f.SettleDead: Cost(REQUESTS, 50, "rows, and an entry in the signed log"),
    f.DeclareExchange: _CHANGE,
    f.DeleteExchange: _CHANGE,
    f.DeclareQueue: _CHANGE,
    f.DeleteQueue: _CHANGE,
    f.Bind: _CHANGE,
    f.Unbind: _CHANGE,
    f.Purge: _ADMIN,
    f.TellContacts: _CHANGE,
    f.Register: Cost(KEYS, 1, "verifies signatures; an entry in the signed log"),
    f.GetBundles: Cost(KEYS, 1, "up to 1,024 clients at once"),
    f.OfferPrekeys: Cost(KEYS, 1, "verifies signatures"),
    f.Renew: Cost(KEYS, 1, "a certificate; their number is limited too"),
    f.GetPrekeys: Cost(PREKEYS, 1, "per client it names"),
    f.GetRoot: Cost(REQUESTS, 1, "two certificates"),
    f.RequestCertificate: Cost(
        ENROLMENT, 1, "counted per token, or per address if HQ does not know the token"
    ),
    f.Enrol: _ADMIN,
    f.Approve: _ADMIN,
    f.Grant: _ADMIN,
    f.LimitClient: _ADMIN,
    f.Revoke: Cost(REQUESTS, 50, "admin only; a new revocation list"),
    f.ExportRequests: _LOOK,
    f.ImportCertificates: _ADMIN,
    f.ReadLog: Cost(REQUESTS, 20, "admin only; a page of the log"),
    f.GetHeads: Cost(REQUESTS, 5, "plus one for each 4 heads it names: proofs of logarithmic size"),
    f.Prove: Cost(REQUESTS, 5, "plus 3 per envelope and one per serial: whole entries are read"),
    f.Cosign: Cost(REQUESTS, 20, "verifies and stores a signature"),
    f.AttestRestore: _ADMIN,
    f.Kick: _ADMIN,
    f.Reload: _ADMIN,
    f.Drain: _ADMIN,
    f.ConfirmClock: _ADMIN,
    f.SetWatermark: _ADMIN,
}
_MORE: dict[type, Callable[[Any], float]] = {  # points for what a frame names
    f.Ack: lambda x: min(sum(run.count for run in x.ranges), 1 << 20) // _ENTRIES,
    f.GetHeads: lambda x: len(x.sizes) // 4,
    f.Prove: lambda x: 3 * len(x.envelopes) + len(x.serials),
    SendBatch: lambda x: len(x.items) - 1,
}
_UNKNOWN = Cost(REQUESTS, 50, "a frame type without a row; a test fails")


class Rate:
    """A rate limit per name: a token bucket that refills evenly."""

    def __init__(
        self, per_minute: int, what: str, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._what = what
        self._clock_s = clock_s
        self._spent: dict[str, tuple[float, float]] = {}  # name -> (points left, when)

    def spend(self, name: str, cost: float = 1) -> None:
        """Take points; raise Throttled if this name has spent its budget."""
        left, now = self._left(name)
        if left < cost:
            wait_s = math.ceil((cost - left) * 60 / self._per_minute)
            raise Throttled(
                f"more than {self._per_minute} {self._what} in a minute",
                remedy=f"ask again in {wait_s} s",
            )
        self._spent[name] = (left - cost, now)

    def wait_s(self, name: str, cost: float) -> float:
        """Take points and return how long to wait until they are earned; 0 if they were
        available.
        """
        left, now = self._left(name)
        self._spent[name] = (left - cost, now)
        return max(0.0, (cost - left) * 60 / self._per_minute)

    def _left(self, name: str) -> tuple[float, float]:
        now = self._clock_s()
        left, when = self._spent.get(name, (float(self._per_minute), now))
        if len(self._spent) >= NAMES and name not in self._spent:
            self._prune(now)
        return min(self._per_minute, left + (now - when) * self._per_minute / 60), now

    def _prune(self, now: float) -> None:
        """Drop full buckets; if there are none, drop the least recently used ones."""
        full_after_s = 60.0
        left = {name: row for name, row in self._spent.items() if now - row[1] < full_after_s}
        if len(left) >= NAMES:
            left = dict(sorted(left.items(), key=lambda item: item[1][1])[NAMES // 2 :])
        self._spent = left


class Spender(Protocol):
    """The peer whose budget a frame is charged to."""

    client: str
    role: str
    address: str


class Budgets:
    """The budgets of all peers."""

    def __init__(self, limits: Limits, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._flow = Rate(limits.flow_per_minute, "points of frames", clock_s)
        self._requests = Rate(
            limits.requests_per_minute, "points of requests (cipherbox manual broker)", clock_s
        )
        self.throttled = 0  # requests refused

    async def charge(self, spender: Spender, event: Any) -> Throttled | None:
        """Charge a frame: wait for the flow budget, or return the refusal of a request."""
        kind = f.Send if type(event) is SendBatch else type(event)
        budget, points, _ = COSTS.get(kind, _UNKNOWN)
        more = _MORE.get(type(event))
        cost = points + (more(event) if more is not None else 0)
        if spender.role == "admin":
            cost /= _ADMIN_SHARE
        name = spender.client or f"address {spender.address}"
        if budget == FLOW:
            wait_s = self._flow.wait_s(name, cost)
            if wait_s:
                await trio.sleep(wait_s)
        elif budget == REQUESTS:
            try:
                self._requests.spend(name, cost)
            except Throttled as refusal:
                self.throttled += 1
                return refusal
        return None
