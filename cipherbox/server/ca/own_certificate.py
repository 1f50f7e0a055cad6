"""HQ's own certificate: renewed by itself when two thirds of its life are over, and no connection
notices.

While the issuing CA's key is here HQ does it alone.  With the CA elsewhere its request waits among
those of the clients (`cipherbox ca export`), under a name that no client has.  New connections are
shown the new certificate; those that are open stay.  What cannot be now (a full disk, a directory
that cannot be written) is tried again, and the old certificate serves meanwhile.

A certificate that begins later than now is renewed as well: it was made while this machine's clock
was ahead.  And so is one that the CA's revocation list names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from cipherbox import clock, pki
from cipherbox.errors import BundleNotCertified, CipherBoxError, ConfigError
from cipherbox.ops.logs import get_logger
from cipherbox.server.ca.credentials import dates, next_key, put_server, read_material

if TYPE_CHECKING:
    from cipherbox.server.hq import HQ

log = get_logger(__name__)
LOOK_S = 3600.0
RETRY_S = 60.0


class OwnCertificate:
    """See the module.  ``trouble``: why it could not be renewed; ``waiting``: its request's
    number, at the CA.
    """

    def __init__(self, hq: HQ) -> None:
        self._hq = hq
        self.trouble = self.waiting = ""

    async def begin(self) -> None:
        """Before HQ listens: ConfigError when by this clock its CA cannot be; renews what has
        ended.
        """
        trust = self._hq.trust
        if wrong := dates(trust.material, clock.now()):
            raise ConfigError("\n".join(wrong))
        await self.look()
        if self.trouble and trust.server.not_valid_after_utc <= clock.now():
            raise ConfigError(
                f"HQ's certificate has ended and could not be renewed: {self.trouble}"
            )
        try:
            pki.verify_chain([trust.server, *trust.material.chain], trust.root, None, pki.SERVER)
        except BundleNotCertified as error:
            raise ConfigError(f"HQ's certificate is nothing that clients accept: {error}") from None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due_s = (pki.renew_at(self._hq.trust.server) - clock.now()).total_seconds()
            await trio.sleep(
                RETRY_S if self.trouble else min(LOOK_S, due_s) if due_s > 0 else LOOK_S
            )
            await self.look()

    async def look(self) -> None:
        """Renews the certificate, or asks for one, if it is time."""
        server, now = self._hq.trust.server, clock.now()
        due = (
            pki.is_due(server, now)
            or now < server.not_valid_before_utc
            or self._hq.lists.names_hq()
        )
        if not due:
            self.trouble = self.waiting = ""
            return
        try:
            if self._hq.trust.authority is not None:
                self._renew()
            else:
                await self._ask()
            self.trouble = ""
        except (CipherBoxError, OSError) as error:
            if str(error) != self.trouble:
                self.trouble = str(error)
                log.error("HQ's certificate could not be renewed", extra={"error": self.trouble})

    def adopt(self) -> None:
        """New connections see what the files hold now."""
        hq = self._hq
        material = read_material(hq.config)
        material.try_out()
        hq.take_over(hq.config, material, material.context())

    def _renew(self) -> None:
        config, authority = self._hq.config, self._hq.trust.authority
        assert authority is not None
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
        csr = pki.make_csr(next_key(self._hq.config), self._hq.config.server.name)
        number = await self._hq.carried.ask_for_hq(csr)
        if number != self.waiting:
            self.waiting = number
            log.warning("HQ's certificate waits for the CA", extra={"number": number})
