"""HQ: composes the parts of one running HQ."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox import clock
from cipherbox.broker import model as m
from cipherbox.broker.usage import PREKEYS
from cipherbox.config.settings import ServerConfig, secret_key
from cipherbox.config.toml_file import tables_of
from cipherbox.errors import CipherBoxError, ConfigError
from cipherbox.ops.logs import get_logger
from cipherbox.server.ca.credentials import Credentials
from cipherbox.server.ca.exchange import CaExchange
from cipherbox.server.ca.own_certificate import OwnCertificate
from cipherbox.server.clock_guard import ClockGuard, recorded
from cipherbox.server.connection.admission import Admission
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.budget import Budgets, Rate
from cipherbox.server.connection.registry import ConnectionRegistry
from cipherbox.server.connection.session import Session, Shared, Stream
from cipherbox.server.connection.unauthenticated import UnauthenticatedConnections
from cipherbox.server.directory.bundles import Directory
from cipherbox.server.directory.enrolment import Enrolments
from cipherbox.server.directory.prekeys import PrekeyService
from cipherbox.server.directory.revocation_enforcer import RevocationEnforcer
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.live_config import LiveConfig
from cipherbox.server.log_mark import FILE as MARK_FILE
from cipherbox.server.log_mark import LogMark
from cipherbox.server.operations.drain import Drain
from cipherbox.server.operations.reload import Difference, load_reload, log_differences
from cipherbox.server.operations.retention import Retention
from cipherbox.server.operations.standbys import Standbys
from cipherbox.server.requests.dispatch import Requests
from cipherbox.server.transparency_log import KEY_FILE, TransparencyLog, certified, load_key
from cipherbox.store.port import CLOCK, Store

log = get_logger(__name__)
_KEY_CHECK = "database_key_check"


def _check_key(store: Store, key: bytes, file: Path) -> None:
    """Raise ConfigError unless this is the key that was first used with this database: another one
    would make its contents unreadable bit by bit.
    """
    aead = ChaCha20Poly1305(key)
    known = store.get_setting(_KEY_CHECK)
    if known is None:
        nonce = os.urandom(12)
        store.put_setting(_KEY_CHECK, nonce + aead.encrypt(nonce, b"", _KEY_CHECK.encode()))
        return
    try:
        aead.decrypt(known[:12], known[12:], _KEY_CHECK.encode())
    except InvalidTag:
        raise ConfigError(
            f"{file} is not the key this database was encrypted with",
            remedy="restore the file from your backup",
        ) from None


class HQ:
    """The parts of one HQ, created in the order of their dependencies."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        clock_ms: Callable[[], int] = clock.now_ms,
        clock_s: Callable[[], float] = clock.elapsed_s,
    ) -> None:
        """``clock_ms`` is the machine's clock, ms since 1970; ``clock_s`` never goes back and
        measures budgets.
        """
        limits = config.limits
        self.live = LiveConfig(config)
        self.store = store
        real = clock_s is clock.elapsed_s  # one that a test made belongs to no machine
        self._database_ms = store.database_ms if real else lambda: 0
        self.clock = ClockGuard(
            settings=lambda: self.live.now.clock,
            recorded=recorded(store, self._database_ms()),
            wall_ms=clock_ms,
            elapsed_s=clock_s,
            boot=clock.boot_id() if real else "",
        )
        self.clock_ms = self.clock.now_ms
        self.trust = Trust(config, store, self.clock)
        log_key = load_key(
            config.own_secrets / KEY_FILE, secret_key(config.encryption.service_key_file)
        )
        self._log_signer = log_key
        self.log_key = certified(log_key, self.trust.server_key)
        self.context = self.trust.material.context()
        self.audit = TransparencyLog(log_key, LogMark(config.directory / MARK_FILE))
        self.engine = Engine(
            store,
            limits,
            self.clock_ms,
            audit=self.audit,
            refusal=self.clock.refusal,
        )
        key = secret_key(config.encryption.database_key_file)
        _check_key(store, key, config.encryption.database_key_file)
        self.directory = Directory(store, self.trust, key, self.engine)
        self.enrolments = Enrolments(store, self.engine, self.trust, limits, config.server.address)
        self.memory = BackPressure(limits)
        self.budgets = Budgets(limits)
        self.unauthenticated = UnauthenticatedConnections(
            limits.greeting_per_address, limits.greeting
        )
        self.connections: ConnectionRegistry[Session] = ConnectionRegistry(
            limits, self.engine, self.memory
        )
        self._make_certificates()
        self._make_requests(clock_s)
        self.drain = Drain(self.engine)
        self.retention = Retention(
            self.live, store, self.engine, self.clock, lambda: self.audit.last_at
        )
        self.standbys = Standbys(clock_s)
        self._tables = tables_of(config.file)  # to detect an incomplete file
        self.stopping = False

    def _make_certificates(self) -> None:
        """Create what handles revocation lists, HQ's own certificate, and an offline CA."""
        live, store, engine, trust = self.live, self.store, self.engine, self.trust
        self.lists = RevocationLists(live, store, trust)
        self.admission = Admission(engine, trust, self.lists)
        self.certificate = OwnCertificate(live, store, engine, trust, self.lists, self.take_over)
        self.revocations = RevocationEnforcer(
            store=store,
            engine=engine,
            trust=trust,
            lists=self.lists,
            enrolments=self.enrolments,
            connections=self.connections,
            certificate=self.certificate,
        )
        self.ca_exchange = CaExchange(
            live=live,
            store=store,
            engine=engine,
            trust=trust,
            enrolments=self.enrolments,
            certificate=self.certificate,
            revocations=self.revocations,
        )

    def _make_requests(self, clock_s: Callable[[], float]) -> None:
        """Create what handles requests, their rates, and what all connections share."""
        limits = self.config.limits
        self.key_requests = Rate(
            limits.key_requests_per_minute, "requests for keys and certificates", clock_s
        )
        self.enrol_attempts = Rate(limits.enrol_attempts_per_minute, "enrolment attempts", clock_s)
        self.prekey_requests = Rate(
            limits.prekey_requests_per_minute, "requests for prekeys", clock_s
        )
        of_one = Rate(limits.prekeys_of_one_per_minute, "one-time prekeys of one client", clock_s)
        self.prekeys = PrekeyService(
            self.store,
            self.directory,
            self.trust,
            lambda client: self.engine.broker.state.totals.limit_of(client, PREKEYS),
            of_one,
            self.engine.in_store,
        )
        self._shared = Shared(
            engine=self.engine,
            limits=limits,
            clock_ms=self.clock_ms,
            memory=self.memory,
            budgets=self.budgets,
            admission=self.admission,
            connections=self.connections,
            requests=Requests(self),
            ends_at=self.directory.ends_at,
        )

    @property
    def config(self) -> ServerConfig:
        """The settings in effect."""
        return self.live.now

    def session(
        self, stream: Stream, remote: str, log_key: bytes, authenticated: Callable[[], None]
    ) -> Session:
        """Return a session for a connection; it calls ``authenticated`` after authentication."""
        return Session(self._shared, stream, remote, log_key, authenticated)

    def unready(self) -> list[str]:
        """Return why HQ does not accept everything at present; empty if it does."""
        found = []
        if self.engine.outage:
            found.append(f"the store is not available: {self.engine.outage}")
        if self.engine.disk_full:
            found.append("the disk is full: publishes are refused")
        if self.clock.doubt:
            found.append(f"the clock is in doubt: publishes are refused: {self.clock.doubt.what}")
        if self.engine.draining:
            found.append("HQ is draining: it accepts nothing new")
        if why := self.lists.chain_revoked or self.lists.refusal():
            found.append(f"new connections are refused: {why}")
        if self.stopping:
            found.append("HQ is stopping")
        return found

    async def mark_clock(self) -> None:
        """Record the time, unless the clock is in doubt, for the next start."""
        if (mark := self.clock.mark(self.audit.last_at)) is None:
            return
        try:
            await self.engine.in_store(self.store.put_setting, CLOCK, mark.encode())
        except CipherBoxError:
            self.clock.unrecorded = True  # `watch_clock` tries again
            raise

    async def watch_clock(self) -> None:
        """While the clock is in doubt, look whether it is right again, and ask the database's
        server for the time.
        """
        if self.clock.doubt:
            self.clock.consult(await self.engine.in_store(self._database_ms))
            self.clock.now_ms()
        if self.clock.unrecorded:
            await self.mark_clock()

    async def confirm_clock(self, client: str) -> int:
        """Trust this machine's clock, as ``client`` says ('': a user of this machine); return its
        time.  Logged first: the entry has the expected time, and the clock is trusted once it
        exists.
        """
        at, expected = self.clock.wall_ms(), self.clock.now_ms()
        await self.engine.call(lambda n: m.ConfirmClock(0, client, n, at, expected))
        self.clock.confirm()
        await self.mark_clock()
        return at

    def reload(self) -> list[Difference]:
        """Reload settings and certificates and return what changed; raise ConfigError, changing
        nothing, if one is invalid.
        """
        try:
            new = load_reload(self.config, self._tables, self.trust, self.lists)
        except CipherBoxError as error:
            log.error("Reload failed; settings unchanged", extra={"error": str(error)})
            raise
        self.take_over(new.config, new.material, new.context)
        self.lists.adopt(new.lists)
        self._tables = new.tables
        log_differences(new.differences)
        return new.differences

    def take_over(
        self, config: ServerConfig, material: Credentials, context: ssl.SSLContext
    ) -> None:
        """Put settings and certificates into effect; this cannot fail."""
        self.live.now, self.context = config, context
        self.trust.adopt(material)
        self.lists.check_chain()
        self.log_key = certified(self._log_signer, material.server_key)
        self.enrolments.address = config.server.address
