"""What one running HQ is made of, and the connections it has."""

from __future__ import annotations

import os
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox import clock
from cipherbox.broker.usage import PREKEYS
from cipherbox.concurrency import Signal
from cipherbox.config.settings import ServerConfig, secret_key
from cipherbox.config.toml_file import tables_of
from cipherbox.errors import Busy, CipherBoxError, ConfigError, CredentialsError, HqRevoked, Revoked
from cipherbox.ops.logs import get_logger
from cipherbox.server.ca.credentials import Credentials
from cipherbox.server.ca.exchange import CaExchange
from cipherbox.server.ca.own_certificate import OwnCertificate
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.budget import Budgets, Rate
from cipherbox.server.connection.session import Session
from cipherbox.server.connection.unauthenticated import UnauthenticatedConnections
from cipherbox.server.directory.bundles import Directory
from cipherbox.server.directory.enrolment import Enrolments
from cipherbox.server.directory.prekeys import PrekeyService
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.operations.drain import Drain
from cipherbox.server.operations.reload import Difference, reload
from cipherbox.server.transparency_log import KEY_FILE, TransparencyLog, certified, load_key
from cipherbox.store.port import Store

log = get_logger(__name__)
_KEY_CHECK = "database_key_check"
_ANONYMOUS_SHARE = 4  # of all connections, those without a certificate may hold one in so many


def _check_key(store: Store, key: bytes, file: Path) -> None:
    """The first key a database sees is its key.  Another one would make what is in it
    unreadable, piece by piece.
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
            f"{file} is not the key this database was encrypted with; restore the file from your "
            "backup"
        ) from None


class HQ:
    """The composition: one of each, made in the order in which they need each other."""

    def __init__(
        self, config: ServerConfig, store: Store, clock_ms: Callable[[], int] = clock.now_ms
    ) -> None:
        self.config = config
        self.store = store
        self.clock_ms = clock_ms
        self.trust = Trust(config, store)
        log_key = load_key(
            config.own_secrets / KEY_FILE, secret_key(config.encryption.service_key_file)
        )
        self._log_signer = log_key
        self.log_key = certified(log_key, self.trust.server_key)
        self.context = self.trust.material.context()
        self.engine = Engine(store, config.limits, clock_ms, audit=TransparencyLog(log_key))
        key = secret_key(config.encryption.database_key_file)
        _check_key(store, key, config.encryption.database_key_file)
        self.directory = Directory(store, self.trust, key, self.engine)
        self.enrolments = Enrolments(
            store, self.engine, self.trust, config.limits, config.server.address
        )
        self.carried = CaExchange(self)
        self.certificate = OwnCertificate(self)
        self.lists = RevocationLists(self)
        self.budgets = Budgets(config.limits)
        self.key_requests = Rate(
            config.limits.key_requests_per_minute, "requests for keys and certificates"
        )
        self.enrol_attempts = Rate(config.limits.enrol_attempts_per_minute, "enrolment attempts")
        self.prekey_requests = Rate(
            config.limits.prekey_requests_per_minute, "requests for prekeys"
        )
        of_one = Rate(config.limits.prekeys_of_one_per_minute, "one-time prekeys of one client")
        self.prekeys = PrekeyService(
            store,
            self.directory,
            self.trust,
            lambda client: self.engine.broker.state.totals.most(client, PREKEYS),
            of_one,
            self.engine.in_store,
        )
        self.memory = BackPressure(config.limits)
        self.lobby = UnauthenticatedConnections(
            config.limits.greeting_per_address, config.limits.greeting
        )
        self.sessions: set[Session] = set()
        self._per_client: Counter[str] = Counter()
        self._deserted = Signal()
        self.drain = Drain(self)
        self.tables = tables_of(config.file)  # to notice a file that is half written
        self.stopping = False

    def unready(self) -> list[str]:
        """Why HQ does not take everything now; empty when it does."""
        found = []
        if self.engine.away:
            found.append(f"the store does not answer: {self.engine.away}")
        if self.engine.disk_full:
            found.append("the disk is full: publishes are refused")
        if self.engine.draining:
            found.append("HQ drains: it takes nothing new")
        if why := self.lists.condemned or self.lists.refusal():
            found.append(f"nobody is let in: {why}")
        if self.stopping:
            found.append("HQ stops")
        return found

    def reload(self) -> list[Difference]:
        """Reads settings and certificates again; ConfigError says what is wrong, and then
        nothing has changed.
        """
        try:
            return reload(self)
        except CipherBoxError as error:
            log.error("Settings and certificates stay as they were", extra={"error": str(error)})
            raise

    def take_over(
        self, config: ServerConfig, material: Credentials, context: ssl.SSLContext
    ) -> None:
        """What a reload found; nothing here can fail."""
        self.config, self.context = config, context
        self.trust.adopt(material)
        self.lists.judge()
        self.log_key = certified(self._log_signer, material.server_key)
        self.enrolments.address = config.server.address

    def admit(self, certificate: x509.Certificate) -> tuple[str, str]:
        """Client id and role of who shows this certificate; HqRevoked or CredentialsError; Busy:
        not now.
        """
        if self.lists.condemned:
            raise HqRevoked(self.lists.condemned)
        client = self.trust.identify(certificate)
        row = self.engine.broker.state.rights.clients.get(client)
        if row is None or row.revoked_at:
            raise CredentialsError("HQ does not know this client any more")
        if why := self.lists.refusal():
            raise Busy(f"HQ lets nobody in before it has a newer revocation list: {why}")
        return client, "admin" if self.is_admin(client) else "client"

    def end_certificates(self, serials: Mapping[str, str]) -> None:
        """Connections that were opened with these certificates (serial -> client) end now."""
        for session in [s for s in self.sessions if s.serial in serials]:
            session.end(Revoked(f"the certificate of {session.client} was revoked"))

    def end_all(self, why: CipherBoxError) -> None:
        """Every client's connection ends for this reason."""
        for session in [s for s in self.sessions if s.client]:
            session.end(why)

    def is_admin(self, client: str) -> bool:
        """Whether a connection's client is an admin; nobody is one without a certificate."""
        return bool(client) and self.engine.broker.state.rights.is_admin(client, -1)

    def enter(self, session: Session) -> bool:
        """A session begins; False when there is no room for it."""
        limits = self.config.limits
        if len(self.sessions) >= limits.connections:
            return False
        most = (
            limits.connections_per_client
            if session.client
            else max(1, limits.connections // _ANONYMOUS_SHARE)
        )
        if self._per_client[session.client] >= most:
            return False
        if not session.client:
            here = sum(not s.client and s.address == session.address for s in self.sessions)
            if here >= limits.anonymous_per_address:
                return False
        session.connection = self.engine.attach(session)
        self.sessions.add(session)
        self.engine.counts.connections_opened += 1
        self._per_client[session.client] += 1
        return True

    def leave(self, session: Session) -> None:
        """A session ended, whether it had entered or not."""
        if session in self.sessions:
            self.sessions.discard(session)
            self._per_client[session.client] -= 1
            if not self._per_client[session.client]:
                del self._per_client[session.client]
                self.memory.forget(session.client)
            self.engine.detach(session.connection)
            if not self.sessions:
                self._deserted.notify()

    def tell_revoked(self, news: str, crl_number: int) -> None:
        """Every connected client hears that somebody was revoked, and of the list that says so."""
        for session in list(self.sessions):
            session.tell(news, crl_number)

    async def deserted(self) -> None:
        """Waits until no session is left."""
        while self.sessions:
            await self._deserted.wait()

    def connections(self) -> list[dict[str, object]]:
        """Rows for LIST connections."""
        found = sorted(self.sessions, key=lambda s: s.connection)
        return [
            {
                "name": s.client,
                "connection": s.connection,
                "role": s.role,
                "remote": s.remote,
                "connected_at": s.connected_at,
                "asked_at": s.asked_at,
            }
            for s in found
        ]
