"""The life cycle of this client's keys: renewed before they expire, rotated with overlap, destroyed
when no longer needed.

Every change is a chain of small steps. Each is durable before the next begins, and each is
idempotent:

    renew    the next certificate key beside the current one; HQ's answer to it; the certificate;
             the key replaces the current one; then a bundle of the same keys under the new
             certificate
    rotate   new keys and their bundle, saved as upcoming; published; replacing the current keys
    upgrade  a bundle of the same keys in the current version of the format, when the published one
             is older
    finish   any step that a crash or an unreachable HQ left undone

So a home works after a crash between any two steps. Upcoming keys open messages as soon as they are
saved, since others may seal to them although HQ's answer was lost. Processes of one home serialise
changes with a lock; a long-running one reads what another changed (`refresh`).

Retired keys open messages until nothing sealed to them can still arrive. A sender that cannot reach
HQ uses a pinned key while its revocation list is valid, at most 35 days; and no inbox accepts an
envelope whose id is older than 400 days. With one day for clock differences: 436 days. With fewer
(`[keys] keep_old_days`), later messages are refused as `key-missing`, and their sender seals them
again for the current keys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox import clock, pki
from cipherbox.classes import frozen
from cipherbox.client.enrol import ISSUED, checked_chain
from cipherbox.client.events import KEYS, RECEIVER, EventKind, Events
from cipherbox.client.home import (
    CERTIFICATE,
    IDENTITY,
    KEY,
    Home,
    certificate_of,
    key_replacement,
    keyless,
)
from cipherbox.client.hq_time import deletion_ms, stamp_ms
from cipherbox.client.keys.own import LOCK
from cipherbox.client.local_database import translated
from cipherbox.concurrency import Backoff, only, retry
from cipherbox.envelope.bundle import VERSION, decode_bundle, fingerprint
from cipherbox.envelope.suites import SUITES
from cipherbox.errors import (
    BundleError,
    BundleRefused,
    CipherBoxError,
    StoreError,
    StoreLocked,
)
from cipherbox.limits import LIMITS
from cipherbox.pki.certificates import is_due
from cipherbox.portable import lock_file, write_atomic
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.connection.reconnecting import ReconnectingConnection
    from cipherbox.client.keys.directory import Directory

LOOK_S = 3600.0
RETRY_S = 60.0
# a program that runs this long checks the keys HQ serves in its name; short commands do not
LONG_RUNNING_S = 10.0
WAIT_S, LOCK_LOOK_S = 5.0, 0.1
_DAY_MS = 24 * 3600 * 1000
OLD_KEY_DAYS = pki.OFFLINE_CRL_DAYS + LIMITS.watermark_ms // _DAY_MS + 1


@frozen
class Renewal:
    """The result of a renewal request. ``ends_at`` is ms since 1970; 0: the request waits for the
    offline CA.
    """

    number: str
    ends_at: int


class KeyLifecycle:
    """Renews, rotates and destroys the keys of ``home``. The home and its identity change in
    place.
    """

    def __init__(
        self,
        home: Home,
        connection: ReconnectingConnection,
        events: Events,
        directory: Directory,
        *,
        published: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._home, self._connection, self._events, self._directory = (
            home,
            connection,
            events,
            directory,
        )
        self._stamp = self._stamps()
        self._reported = ""
        self._task_lock = trio.Lock()
        # called when the keys in use have changed
        self._published = published

    # -- for people and long-running commands ------------------------------------------------------

    async def rotate(self, signatures: str | None = None) -> Identity:
        """Publish new keys, put them in use and return the identity. ``signatures`` None uses
        `[keys]`.

        Raise Forbidden on an admin's machine. If HQ is unreachable the keys are saved, and the next
        command that reaches HQ publishes them.
        """
        identity = self._identity()
        async with self._locked():
            self.refresh()
            await self._finish()
            suite = SUITES[signatures or self._home.config.signatures]
            await self._succeed(Identity.generate(identity.client_id, suite))
            self._destroy()
        return identity

    async def renew(self) -> Renewal:
        """Request a certificate for a new key and return the result; a new bundle follows it."""
        async with self._locked():
            self.refresh()
            found = await self._renew()
            if found.ends_at:
                await self._finish()
            self._destroy()
        return found

    async def finish(self) -> None:
        """Complete steps that were left undone; without any, this is cheap."""
        if self._home.local_key is not None and self._left_undone():
            async with self._locked():
                self.refresh()
                await self._finish()

    async def run(self) -> None:
        """Renew when due, finish and destroy until cancelled, retrying after transient errors."""
        began = trio.current_time()
        while True:
            lasts = trio.current_time() - began >= LONG_RUNNING_S
            pause = LOOK_S if lasts else LONG_RUNNING_S
            try:
                await self._connection.ready()
                self.refresh()
                await self.finish()
                if lasts:
                    await self._warn_of_others()
                if is_due(self._home.chain[0]):
                    await self._renew_and_report()
                elif self._home.identity is not None and self._home.local_key is not None:
                    async with self._locked():
                        self._destroy()
            except StoreLocked:
                pause = RETRY_S
            except CipherBoxError as error:
                self._report_once(f"Renewing or rotating this client's keys failed: {error}")
                pause = RETRY_S if error.retryable else LOOK_S
            await trio.sleep(pause)

    async def say_registered(self) -> None:
        """Emit an event that HQ serves this client's keys. Errors of HQ are ignored."""
        bundle = self._home.identity.bundle if self._home.identity is not None else None
        if bundle is None or not self._events.has_listener:
            return
        with suppress(CipherBoxError):
            if await self._at_hq(bundle.sequence) == bundle.hash:
                self._events.emit(
                    RECEIVER,
                    f"Public key of {bundle.client_id} is registered at HQ, bundle "
                    f"{bundle.sequence}",
                    kind=EventKind.REGISTERED,
                )

    def refresh(self) -> bool:
        """Load what another process of this home changed; return whether anything did."""
        home, local_key = self._home, self._home.local_key
        stamp = self._stamps()
        if local_key is None or stamp == self._stamp:
            return False
        try:
            home.chain, home.key = certificate_of(home.path, home.config.client_id, local_key)
            if home.identity is not None:
                home.identity.adopt(keyfile.load(home.path / IDENTITY, local_key=local_key))
        except CipherBoxError:
            return False  # it is being written, or damaged: keep using what is in memory
        self._stamp = stamp
        return True

    # -- steps -------------------------------------------------------------------------------------

    async def _renew_and_report(self) -> None:
        found = await self.renew()
        if found.ends_at:
            end = datetime.fromtimestamp(found.ends_at / 1000, UTC)
            self._events.emit(KEYS, f"The certificate was renewed; it ends on {end:%Y-%m-%d}")
        else:
            self._report_once(
                f"The renewal is pending until requests are carried to the offline CA; number "
                f"{found.number}"
            )

    async def _renew(self) -> Renewal:
        home, path = self._home, self._home.path
        client_id = home.config.client_id
        replacement = key_replacement(path, self._local_key())
        with translated(path):
            key = replacement.next_key()
        answer: frames.Certificate = await self._connection.request(
            frames.Renew, csr=pki.make_csr(key, client_id)
        )
        if answer.state != ISSUED:
            return Renewal(answer.number, 0)
        chain = checked_chain(answer.chain, home.root, key, client_id)
        with translated(path):
            write_atomic(path / CERTIFICATE, pki.pem(*chain))
            replacement.finish()
        home.chain, home.key = tuple(chain), key
        self._stamp = self._stamps()
        return Renewal(answer.number, pki.ms(chain[0].not_valid_after_utc))

    def _left_undone(self) -> bool:
        identity = self._home.identity
        if identity is None or identity.bundle is None:
            return False
        return (
            identity.upcoming is not None
            # left by 0.5.0: others seal only to keys that these keys sign
            or identity.bundle.version < VERSION
            or identity.bundle.chain[0] != pki.der(self._home.chain[0])
        )

    async def _finish(self) -> None:
        identity = self._home.identity
        if identity is None:
            return
        if identity.upcoming is not None:
            await self._upgrade_upcoming(identity, identity.upcoming)
            await self._publish()
        if self._left_undone():
            await self._succeed(identity.same_keys())

    async def _upgrade_upcoming(self, identity: Identity, fresh: Identity) -> None:
        """Remake a bundle that 0.5.0 left as upcoming and HQ never received, in the current
        format.
        """
        assert fresh.bundle is not None
        if (
            fresh.bundle.version < VERSION
            and await self._at_hq(fresh.bundle.sequence) != fresh.bundle.hash
        ):
            fresh.bundle = fresh.make_bundle(
                self._home.key, self._home.chain, clock.now_ms(), identity.bundle, identity
            )
            self._save()

    async def _succeed(self, fresh: Identity) -> None:
        """Save ``fresh`` as the identity's successor, publish it, and put it in use."""
        home, identity = self._home, self._identity()
        fresh.bundle = fresh.make_bundle(
            home.key, home.chain, clock.now_ms(), identity.bundle, identity
        )
        identity.upcoming = fresh
        self._save()
        await self._publish()

    async def _publish(self) -> None:
        identity = self._identity()
        fresh = identity.upcoming
        assert fresh is not None
        assert fresh.bundle is not None
        try:
            await self._connection.request(frames.Register, bundle=fresh.bundle.raw)
        except BundleRefused as error:
            other = await self._at_hq(fresh.bundle.sequence)
            if other != fresh.bundle.hash:
                identity.upcoming = None  # HQ never accepted it, so nobody has sealed to it
                self._save()
                raise _explained(error, fresh.bundle.sequence, other) from None
        identity.promote(stamp_ms(self._home.path))
        self._save()
        number = fingerprint(fresh.bundle)
        self._events.emit(
            KEYS,
            f"Key bundle {fresh.bundle.sequence} of {identity.client_id} is published; "
            f"fingerprint {number}",
        )
        if self._published is not None:
            await self._published()

    async def _at_hq(self, sequence: int) -> bytes | None:
        """Return the hash of this client's bundle of that number at HQ, or None."""
        answers = await self._directory.ask([(self._home.config.client_id, sequence - 1)])
        found = [decode_bundle(raw) for one in answers for raw in one.bundles]
        return next((b.hash for b in found if b.sequence == sequence), None)

    async def check_own(self) -> None:
        """Raise BundleError if HQ serves keys in this client's name that this home did not make."""
        identity = self._home.identity
        if identity is None or identity.bundle is None or self._home.local_key is None:
            return
        upcoming = identity.upcoming.bundle if identity.upcoming is not None else None
        await self._directory.check_own(
            identity.bundle, upcoming.hash if upcoming is not None else b""
        )

    async def _warn_of_others(self) -> None:
        try:
            await self.check_own()
        except BundleError as error:
            self._report_once(f"WARNING: {error}")

    def _destroy(self) -> None:
        identity = self._home.identity
        if identity is None:
            return
        count = identity.destroy(
            deletion_ms(self._home.path) - self._home.config.keep_old_days * _DAY_MS
        )
        if count:
            self._save()
            self._events.emit(
                KEYS, f"{count} old private keys were destroyed: nothing sealed to them can arrive"
            )

    # -- internals ---------------------------------------------------------------------------------

    def _identity(self) -> Identity:
        if self._home.identity is None:
            raise keyless(
                "an admin's machine has no keys that seal or open messages, so none to rotate"
            )
        return self._home.identity

    def _local_key(self) -> bytes:
        if self._home.local_key is None:
            raise StoreError("this home was opened without the key to its files")
        return self._home.local_key

    def _save(self) -> None:
        keyfile.save(self._home.path / IDENTITY, self._identity(), local_key=self._local_key())
        self._stamp = self._stamps()

    def _stamps(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(self._home.path / name) for name in (CERTIFICATE, KEY, IDENTITY))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """Serialise key changes across tasks and processes; wait briefly for the lock."""
        self._local_key()
        path = self._home.path / LOCK
        async with self._task_lock:
            with ExitStack() as stack:

                async def enter() -> None:
                    stack.enter_context(lock_file(path, f"the keys of {self._home.path}"))

                await retry(
                    enter,
                    Backoff(LOCK_LOOK_S, LOCK_LOOK_S),
                    tries=round(WAIT_S / LOCK_LOOK_S),
                    transient=only(StoreLocked),
                )
                yield

    def _report_once(self, text: str) -> None:
        if text != self._reported:
            self._reported = text
            self._events.emit(KEYS, text)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _explained(error: CipherBoxError, sequence: int, other: bytes | None) -> CipherBoxError:
    if other is None:
        return error
    return BundleRefused(
        f"HQ has a key bundle {sequence} of this client that this home did not make: either the "
        "home was restored from an older backup, or its keys were stolen",
        remedy="ask the admin to revoke this client, then join again",
    )
