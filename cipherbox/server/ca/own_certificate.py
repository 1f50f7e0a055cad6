"""HQ's own certificate: renewed automatically after two thirds of its life, without dropping
connections.

If the issuing CA's key is here HQ signs it.  With an offline CA its request waits among those of
the clients (`cipherbox ca export`), under a name that no client has.  New connections get the new
certificate; open ones continue.  After a failure (a full disk, a read-only directory) it is
retried, and the old certificate stays in use.

A certificate that is not valid yet is renewed, too: it was made while this machine's clock was
ahead.  So is one that the CA's revocation list names.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import trio

from cipherbox import pki
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import BundleNotCertified, CipherBoxError, ConfigError
from cipherbox.ops.logs import get_logger
from cipherbox.server.ca.credentials import Credentials, dates, next_key, put_server, read_material
from cipherbox.server.ca.requests_document import HQ_NAME, HQ_ROLE, request_row
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.live_config import LiveConfig
from cipherbox.store.port import Store

log = get_logger(__name__)
CHECK_S = 60.0  # a certificate made while the clock was ahead is replaced as soon
RETRY_S = 60.0
# puts a new certificate, or a reload, into effect; it cannot fail
TakeOver = Callable[[ServerConfig, Credentials, ssl.SSLContext], None]


class OwnCertificate:
    """HQ's own certificate.  ``trouble`` says why it could not be renewed; ``waiting`` is the
    number of its request at the CA.
    """

    def __init__(
        self,
        live: LiveConfig,
        store: Store,
        engine: Engine,
        trust: Trust,
        lists: RevocationLists,
        take_over: TakeOver,
    ) -> None:
        self._live, self._store, self._engine = live, store, engine
        self._trust, self._lists, self._take_over = trust, lists, take_over
        self.trouble = self.waiting = ""

    async def begin(self) -> None:
        """Renew an expired certificate before HQ listens; raise ConfigError if its CA is not valid
        by this machine's clock.
        """
        trust = self._trust
        if wrong := dates(trust.material, trust.clock.now()):
            raise ConfigError("\n".join(wrong))
        await self.renew_if_due()
        if self.trouble and trust.server.not_valid_after_utc <= trust.clock.now():
            raise ConfigError(
                f"HQ's certificate has expired and could not be renewed: {self.trouble}"
            )
        try:
            pki.verify_chain([trust.server, *trust.material.chain], trust.root, None, pki.SERVER)
        except BundleNotCertified as error:
            raise ConfigError(f"clients do not accept HQ's certificate: {error}") from None

    async def run(self) -> None:
        """Renew the certificate when it is due, until cancelled."""
        while True:
            due_s = (pki.renew_at(self._trust.server) - self._trust.clock.now()).total_seconds()
            await trio.sleep(
                RETRY_S if self.trouble else min(CHECK_S, due_s) if due_s > 0 else CHECK_S
            )
            await self.renew_if_due()

    async def renew_if_due(self) -> None:
        """Renew the certificate, or request it from the CA, if it is due."""
        server, now = self._trust.server, self._trust.clock.now()
        due = (
            pki.is_due(server, now)
            or now < server.not_valid_before_utc
            or self._lists.own_is_revoked()
        )
        if not due:
            self.trouble = self.waiting = ""
            return
        try:
            if self._trust.authority is not None:
                self._renew()
            else:
                await self._ask()
            self.trouble = ""
        except (CipherBoxError, OSError) as error:
            if str(error) != self.trouble:
                self.trouble = str(error)
                log.error("HQ's certificate could not be renewed", extra={"error": self.trouble})

    def adopt(self) -> None:
        """Use the certificates in the files for new connections."""
        config = self._live.now
        material = read_material(config)
        material.try_out()
        self._take_over(config, material, material.context())

    def _renew(self) -> None:
        config, authority = self._live.now, self._trust.authority
        assert authority is not None
        self._trust.clock.require()
        key = next_key(config)
        certificate = pki.issue_server(authority, key.public_key(), config.server.name)
        put_server(config, certificate)
        self.adopt()
        until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        log.info(
            "HQ's certificate was renewed",
            extra={"serial": pki.serial(certificate), "until": until},
        )

    async def _ask(self) -> None:
        csr = pki.make_csr(next_key(self._live.now), self._live.now.server.name)
        row = request_row(
            HQ_NAME, HQ_ROLE, csr, self._trust.root_fingerprint, self._trust.clock.now_ms()
        )
        if await self._engine.in_store(self._store.enrolment, row.secret_hash) is None:
            await self._engine.in_store(self._store.put_enrolment, row)
        number = row.number
        if number != self.waiting:
            self.waiting = number
            log.warning("HQ's certificate request waits for the CA", extra={"number": number})
