"""Look up senders' keys at HQ in the background, so that a waiting delivery delays no others.

A delivery whose sender's bundle is not known here is parked, and HQ is asked for the bundles of all
parked senders in one request.  A delivery whose bundle is found returns to its consumer; any other
is refused.

Bounds, since an envelope may name any hash as its sender's bundle:
1. A request has at most `OF_SENDER` hashes of one sender, and a sender causes at most `PER_SENDER`
   requests a minute; deliveries beyond that are refused without a request.
2. All look-ups together make at most `IN_ALL` requests a minute, half of what HQ allows a client:
   the rest is for sending.
3. A hash that HQ does not have is remembered for `MISS_S`, `MISSES` of each sender: redelivered, it
   is refused immediately.
4. A parked delivery keeps its share of the consumer's credit, which bounds their number.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import trio

from cipherbox.client.connection.rate_limit import Bucket
from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.keys.directory import Directory
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of
from cipherbox.concurrency import Backoff
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import BundleUnknown, CipherBoxError, SenderNotValid, Throttled

OF_SENDER = 16
SENDERS = 32  # in one request
PER_SENDER, IN_ALL = 8, 30  # requests a minute
MISSES, MISS_S = 256, 600.0
NAMES = 4096  # senders whose misses and requests are remembered
_PAUSE_S, _PAUSE_MAX_S = 0.5, 10.0  # after HQ could not be asked
Done = Callable[[Delivery, Exception | None], None]


class Lookups:
    """Parked deliveries and their look-ups. ``nursery`` runs the task that asks HQ."""

    def __init__(self, directory: Directory, events: Events, nursery: trio.Nursery) -> None:
        self._directory, self._events, self._nursery = directory, events, nursery
        self._parked: dict[str, deque[tuple[Delivery, Done]]] = {}
        self._misses: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._all = Bucket(IN_ALL)
        self._running = False

    @property
    def busy(self) -> bool:
        """Return whether a delivery is parked."""
        return bool(self._parked)

    def holds_earlier(self, delivery: Delivery) -> bool:
        """Return whether an earlier delivery of its sender is parked, behind which it waits.

        One that returned from its look-up must not wait behind a later one that is still parked: it
        would be parked again, and overtaken.
        """
        return bool(self._parked) and any(
            one.queue == delivery.queue
            and one.connection is delivery.connection
            and one.seq < delivery.seq
            for one, _ in self._parked.get(delivery.sender_id, ())
        )

    def missed(self, sender: str, bundle_hash: bytes) -> bool:
        """Return whether HQ recently answered that it does not have this bundle."""
        own = self._misses.get(sender)
        return own is not None and trio.current_time() < own.get(bundle_hash, 0.0)

    def park(self, delivery: Delivery, done: Done) -> None:
        """Park a delivery until its sender's keys were looked up; then call ``done``."""
        self._parked.setdefault(delivery.sender_id, deque()).append((delivery, done))
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run)

    async def bundle(
        self, sender: str, bundle_hash: bytes, accepted_at: int, log_entry: int = 0
    ) -> KeyBundle:
        """Return the bundle that an envelope's content names, as `Directory.sender` does, within
        this sender's bounds.
        """
        if not self._directory.has_sender(bundle_hash):
            if self.missed(sender, bundle_hash):
                raise BundleUnknown
            if self._bucket(sender).take():
                raise SenderNotValid(f"{sender} names keys that HQ was asked for too often")
            if self._all.take():
                raise Throttled("HQ was asked for many senders' keys; it is asked again soon")
        try:
            return await self._directory.sender(sender, bundle_hash, accepted_at, log_entry)
        except SenderNotValid as error:
            if isinstance(error.__cause__, BundleUnknown):
                self._miss(sender, bundle_hash)
            raise

    async def settle(
        self, deliveries: Sequence[Delivery]
    ) -> list[tuple[Delivery, Exception | None]]:
        """Park deliveries and wait until each was looked up; return them with their errors."""
        found: list[tuple[Delivery, Exception | None]] = []
        ready = trio.Event()

        def done(delivery: Delivery, error: Exception | None) -> None:
            found.append((delivery, error))
            if len(found) == len(deliveries):
                ready.set()

        for delivery in deliveries:
            self.park(delivery, done)
        if deliveries:
            await ready.wait()
        return found

    # -- inside ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        backoff = Backoff(_PAUSE_S, _PAUSE_MAX_S)
        try:
            while self._parked:
                if wait_s := self._all.take():
                    await trio.sleep(wait_s)
                    continue
                wanted = self._wanted()
                if not wanted:
                    self._all.give_back()
                    await trio.lowlevel.checkpoint()
                    continue
                try:
                    found = await self._ask(wanted)
                except CipherBoxError as error:
                    if fault_of(error) is not Fault.LATER:
                        self._tell(wanted, dict.fromkeys(_pairs(wanted), error))
                        continue
                    for sender in wanted:
                        self._bucket(sender).give_back()
                    self._events.emit(
                        RECEIVER, f"Keys of senders cannot be looked up now: {error}; asking again"
                    )
                    await backoff.wait()
                    continue
                backoff.reset()
                self._tell(wanted, found)
        finally:
            self._running = False

    def _wanted(self) -> dict[str, list[bytes]]:
        """Return the hashes to request, by sender; release or refuse what needs no request."""
        wanted: dict[str, list[bytes]] = {}
        for sender in list(self._parked):
            hashes = list(dict.fromkeys(_named(d) for d, _ in self._parked[sender] if not d.lost))
            unknown = [
                h
                for h in hashes
                if not self._directory.has_sender(h) and not self.missed(sender, h)
            ]
            if unknown and self._bucket(sender).take():
                error = SenderNotValid(
                    f"{sender} names keys that HQ was asked for too often; it is looked at later"
                )
                self._tell({sender: hashes}, {(sender, one): error for one in unknown})
                continue
            if not unknown:
                self._tell({sender: hashes}, {})
                continue
            wanted[sender] = unknown[:OF_SENDER]
            if len(wanted) == SENDERS:
                break
        return wanted

    async def _ask(
        self, wanted: dict[str, list[bytes]]
    ) -> dict[tuple[str, bytes], Exception | None]:
        try:
            return dict(await self._directory.look_up(wanted))
        except Exception as error:
            if fault_of(error) is not Fault.SENDER:
                raise
            if len(wanted) == 1:
                return dict.fromkeys(_pairs(wanted), error)
        found: dict[tuple[str, bytes], Exception | None] = {}
        for sender, hashes in wanted.items():  # one of them fails the request: ask for each alone
            found.update(await self._ask({sender: hashes}))
        return found

    def _tell(
        self, wanted: dict[str, list[bytes]], found: dict[tuple[str, bytes], Exception | None]
    ) -> None:
        """Release what was looked up, and what was parked behind it and is known."""
        for pair, error in found.items():
            if isinstance(error, BundleUnknown):
                self._miss(*pair)
        for sender in wanted:
            kept: deque[tuple[Delivery, Done]] = deque()
            for delivery, done in self._parked.pop(sender, ()):
                pair = sender, _named(delivery)
                if delivery.lost:
                    # its connection has ended, and HQ redelivers it
                    done(delivery, None)
                elif pair in found:
                    done(delivery, found[pair])
                elif self._directory.has_sender(pair[1]) or self.missed(*pair):
                    done(delivery, None)
                else:
                    kept.append((delivery, done))
            if kept:
                self._parked[sender] = kept

    def _miss(self, sender: str, bundle_hash: bytes) -> None:
        own = self._misses.setdefault(sender, OrderedDict())
        own[bundle_hash] = trio.current_time() + MISS_S
        if len(own) > MISSES:
            own.popitem(last=False)
        if len(self._misses) > NAMES:
            self._misses.popitem(last=False)

    def _bucket(self, sender: str) -> Bucket:
        found = self._buckets.get(sender)
        if found is None:
            found = self._buckets[sender] = Bucket(PER_SENDER)
            if len(self._buckets) > NAMES:
                self._buckets.popitem(last=False)
        return found


def _named(delivery: Delivery) -> bytes:
    return delivery.parsed.layout.prefix.bundle_hash


def _pairs(wanted: dict[str, list[bytes]]) -> list[tuple[str, bytes]]:
    return [(sender, one) for sender, hashes in wanted.items() for one in hashes]
