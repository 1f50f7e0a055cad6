"""Revocation lists that come as files: of an organization's CAs, or of an issuing CA whose key is elsewhere.

`[ca] revocation_lists` names a file or a directory of `*.crl`.  They are read at the start, at a reload, and by
themselves when a file is replaced.  Each list counts for the CA whose name and key signed it:

    the issuing CA          its clients' certificates end here at once, with their connections; and when HQ does not
                            make that list itself, this is the one that clients get
    the root, a CA between  when it names a CA below it on HQ's chain, nothing that the chain certifies is accepted

A file that is half written, of an unknown CA, or older than what was read before is an error, and what was known stays.
A list that has ended goes on counting; `stale_lists = "refuse"` lets nobody in until there is a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio
from cryptography import x509

from cipherbox import pki
from cipherbox.config import ServerConfig
from cipherbox.crl import RevocationList, lists_in, read_crl
from cipherbox.errors import CipherBoxError, ConfigError, CredentialsError
from cipherbox.ops.logs import get_logger
from cipherbox.server.material import Material

if TYPE_CHECKING:
    from cipherbox.server.hq import HQ

log = get_logger(__name__)
LOOK_S = 5.0


class Listed(NamedTuple):
    """One list: of which CA, and what it says."""

    ca: x509.Certificate
    der: bytes
    says: RevocationList
    file: Path


Stamp = tuple[tuple[str, int, int, int], ...]


def files_of(config: ServerConfig) -> list[Path]:
    """The files that hold lists."""
    named = config.ca.revocation_lists
    if named is None:
        return []
    return sorted(named.glob("*.crl")) if named.is_dir() else [named]


def read_lists(config: ServerConfig, material: Material) -> dict[bytes, Listed]:
    """The newest list of each CA, by its fingerprint; ConfigError names the file that is wrong."""
    found: dict[bytes, Listed] = {}
    for file in files_of(config):
        try:
            for der in lists_in(file.read_bytes(), str(file)):
                one = _listed(der, material, file)
                before = found.get(pki.fingerprint(one.ca))
                if before is None or before.says.number <= one.says.number:
                    found[pki.fingerprint(one.ca)] = one
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        except CredentialsError as error:
            raise ConfigError(str(error)) from None
    return found


def _listed(der: bytes, material: Material, file: Path) -> Listed:
    for ca in (*material.chain, material.root):
        try:
            return Listed(ca, der, read_crl(der, ca), file)
        except CredentialsError:
            continue
    raise CredentialsError(f"{file}: no CA of this HQ signed this revocation list")


def condemned(found: Iterable[Listed], material: Material) -> str:
    """Why nothing that HQ's chain certifies is accepted; empty: nothing of the kind."""
    steps = zip(material.chain, [*material.chain[1:], material.root], strict=True)
    above = {pki.serial(child): (child, pki.fingerprint(parent)) for child, parent in steps}
    for one in found:
        for serial in one.says.revoked:
            child, parent = above.get(serial, (None, b""))
            if child is not None and parent == pki.fingerprint(one.ca):
                return f"the organization revoked {child.subject.rfc4514_string()}, which certifies everybody here"
    return ""


class Lists:
    """See the module.  ``trouble``: why the files could not be read."""

    def __init__(self, hq: HQ) -> None:
        self._hq = hq
        self.found = read_lists(hq.config, hq.trust.material)
        self.trouble = self.condemned = ""
        self.judge()
        self._stamp = _stamp(hq.config)
        self._changed = trio.Event()

    @property
    def ends(self) -> datetime | None:
        """When the first of them ends."""
        return min((one.says.next_update for one in self.found.values()), default=None)

    def stale(self) -> str:
        """Of what there should be a newer list; empty when all hold."""
        old = [one for one in self.found.values() if one.says.next_update <= pki.now()]
        return "; ".join(f"{one.file} ended on {one.says.next_update:%Y-%m-%d %H:%M} UTC" for one in old)

    def refusal(self) -> str:
        """Why nobody is let in for now; empty: somebody may be."""
        return self.stale() if self._hq.config.ca.stale_lists == "refuse" else ""

    def read(self, config: ServerConfig, material: Material) -> dict[bytes, Listed]:
        """What the files say; ConfigError when one is wrong, or older than what was known."""
        found = read_lists(config, material)
        for ca, one in found.items():
            before = self.found.get(ca)
            if before is not None and one.says.number < before.says.number:
                raise ConfigError(f"{one.file} has number {one.says.number}; {before.says.number} was read before")
        return found

    def adopt(self, found: dict[bytes, Listed]) -> None:
        """These count from now on."""
        self.found, self.trouble = found, ""
        self.judge()
        self._stamp = _stamp(self._hq.config)
        self._changed.set()

    def judge(self) -> None:
        """Whether HQ's chain, as it is now, is on one of them."""
        self.condemned = condemned(self.found.values(), self._hq.trust.material)

    async def run(self) -> None:
        """Until cancelled: looks for files that were replaced, and does what the lists say."""
        while True:
            try:
                await self.obey()
            except CipherBoxError as error:
                log.error("Revocation lists could not be obeyed", extra={"error": str(error)})
            self._changed = trio.Event()
            while not self._changed.is_set():
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
                self._look()

    def _look(self) -> None:
        stamp = _stamp(self._hq.config)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.adopt(self.read(self._hq.config, self._hq.trust.material))
            log.info("Revocation lists were read again", extra={"count": len(self.found)})
        except CipherBoxError as error:
            self.trouble = str(error)
            log.error("The revocation lists stay as they were", extra={"error": self.trouble})

    async def obey(self) -> None:
        """Ends what is revoked."""
        hq = self._hq
        if self.condemned:
            hq.end_all(self.condemned)
        own = self.found.get(pki.fingerprint(hq.trust.issuing))
        if own is not None:
            await obey_list(hq, own.says, own.der if hq.trust.authority is None else b"")


def _stamp(config: ServerConfig) -> Stamp:
    found = []
    for file in files_of(config):
        try:
            of = file.stat()
        except OSError:
            continue
        found.append((str(file), of.st_ino, of.st_mtime_ns, of.st_size))
    return tuple(found)


async def obey_list(hq: HQ, says: RevocationList, der: bytes) -> None:
    """Ends what a list of the issuing CA names: records, connections, clients that have nothing else; then the list.

    ``der`` is what clients get from now on, if it is newer than what they have; empty: HQ makes its own.
    """
    rows = hq.trust.named_by(says.revoked)
    for row in rows:
        await hq.engine.in_store(hq.store.put_certificate, row)
    hq.trust.put_revoked(rows)
    hq.end_certificates({row.serial: row.client for row in rows})
    gone = [client for client in sorted({row.client for row in rows}) if not hq.trust.good(client)]
    for client in gone:
        await hq.enrolments.cut_off(client, "the CA's revocation list names its certificate")
    if not der and rows:
        await hq.engine.in_store(hq.trust.new_crl)
    elif der and says.number > await hq.engine.in_store(hq.trust.crl_number):
        await hq.engine.in_store(hq.trust.put_crl, der, says.number)
    elif not rows:
        return
    number = await hq.engine.in_store(hq.trust.crl_number)
    hq.tell_revoked(f"revoked: {', '.join(gone)}; nothing is sealed for them any more" if gone else "", number)
