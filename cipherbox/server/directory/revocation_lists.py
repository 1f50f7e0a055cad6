"""Revocation lists that come as files: of an organization's CAs, or of an issuing CA whose key is
elsewhere.

`[ca] revocation_lists` names a file or a directory of `*.crl`.  They are read at the start, at a
reload, and by themselves when a file is replaced.  Each list counts for the CA whose name and key
signed it:

    the issuing CA          its clients' certificates end immediately, with their connections; when
                            HQ does not make that list itself, clients get this one
    the root, a CA between  when it names a CA below it on HQ's chain, nothing that the chain
                            certifies is accepted
    any of them             when it names HQ's own certificate, new connections are refused until
                            HQ shows another

A file that is half written, of an unknown CA, not the complete list, or older than what was read
before is refused:  HQ does not start with it, and later what was known of that CA stays, while the
other files count.  A list that has ended goes on counting; `stale_lists = "refuse"` lets nobody in
until there is a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.concurrency import Flag
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import CipherBoxError, ConfigError, CredentialsError, GoingAway, HqRevoked
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import RevocationList, issuer_of, lists_in, read_crl
from cipherbox.server.ca.credentials import Credentials
from cipherbox.server.log_statements import note_revocation

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


class Reading(NamedTuple):
    """What the files say: the newest list of each CA, by its fingerprint, and why others were
    refused.
    """

    found: dict[bytes, Listed]
    refused: list[str]


def look_at_lists(config: ServerConfig, material: Credentials) -> Reading:
    """Reads every file; each is understood completely or refused."""
    reading = Reading({}, [])
    for file in files_of(config):
        try:
            for der in lists_in(file.read_bytes(), str(file)):
                one = _listed(der, material, file)
                before = reading.found.get(pki.fingerprint(one.ca))
                if before is None or before.says.number <= one.says.number:
                    reading.found[pki.fingerprint(one.ca)] = one
        except OSError as error:
            reading.refused.append(f"cannot read {file}: {error.strerror}")
        except CredentialsError as error:
            reading.refused.append(str(error))
    return reading


def read_lists(config: ServerConfig, material: Credentials) -> dict[bytes, Listed]:
    """The newest list of each CA, by its fingerprint; ConfigError names the file that is wrong."""
    found, refused = look_at_lists(config, material)
    if refused:
        raise ConfigError("\n".join(refused))
    return found


def _listed(der: bytes, material: Credentials, file: Path) -> Listed:
    why = CredentialsError("no CA of this HQ signed this revocation list")
    for ca in (*material.chain, material.root):
        if issuer_of(der) != ca.subject:
            continue
        try:
            return Listed(ca, der, read_crl(der, ca, clock.now()), file)
        except CredentialsError as error:
            why = error
    raise CredentialsError(f"{file}: {why}")


def condemned(found: Iterable[Listed], material: Credentials) -> str:
    """Why nothing that HQ's chain certifies is accepted, or HQ itself; empty: nothing of the
    kind.
    """
    steps = zip([material.server, *material.chain], [*material.chain, material.root], strict=True)
    below = {pki.fingerprint(parent): child for child, parent in steps}
    for one in found:
        child = below.get(pki.fingerprint(one.ca))
        if child is None or pki.serial(child) not in one.says.revoked:
            continue
        if child == material.server:
            return (
                f"HQ's own certificate was revoked: the list {one.file} names its serial number "
                f"{pki.serial(child)}"
            )
        return (
            f"the organization revoked {child.subject.rfc4514_string()}, which certifies everybody "
            "here"
        )
    return ""


class RevocationLists:
    """See the module.  ``trouble``: which files were refused, and why."""

    def __init__(self, hq: HQ) -> None:
        self._hq = hq
        self.trouble = self.condemned = ""
        cas = map(pki.fingerprint, (*hq.trust.material.chain, hq.trust.root))
        # the highest ever read
        self._numbers = {ca: int(hq.store.get_setting(_setting(ca)) or b"0") for ca in cas}
        self._changed = Flag()
        self.adopt(self.read(hq.config, hq.trust.material))

    @property
    def ends(self) -> datetime | None:
        """When the first of them ends."""
        return min((one.says.next_update for one in self.found.values()), default=None)

    def stale(self) -> str:
        """Of what there should be a newer list; empty when all hold."""
        old = [one for one in self.found.values() if one.says.next_update <= clock.now()]
        return "; ".join(
            f"{one.file} ended on {one.says.next_update:%Y-%m-%d %H:%M} UTC" for one in old
        )

    def refusal(self) -> str:
        """Why nobody is let in for now; empty: somebody may be."""
        return self.stale() if self._hq.config.ca.stale_lists == "refuse" else ""

    def read(self, config: ServerConfig, material: Credentials) -> dict[bytes, Listed]:
        """What the files say; ConfigError when one is wrong, or older than what was read before."""
        found = read_lists(config, material)
        if older := self._older(found):
            raise ConfigError("\n".join(older.values()))
        return found

    def _older(self, found: Mapping[bytes, Listed]) -> dict[bytes, str]:
        """Those that are older than what was read before, also before HQ's last start, and why
        that is wrong.
        """
        return {
            ca: f"{one.file} has number {one.says.number}; {self._numbers[ca]} was read before"
            for ca, one in found.items()
            if one.says.number < self._numbers.get(ca, 0)
        }

    def adopt(self, found: dict[bytes, Listed]) -> None:
        """These count from now on."""
        self.found, self.trouble = found, ""
        self._numbers.update(
            {ca: max(one.says.number, self._numbers.get(ca, 0)) for ca, one in found.items()}
        )
        self.judge()
        self._stamp = _stamp(self._hq.config)
        self._changed.set()

    def judge(self) -> None:
        """Whether HQ's chain, as it is now, is on one of them."""
        self.condemned = condemned(self.found.values(), self._hq.trust.material)

    async def run(self) -> None:
        """Until cancelled: looks for files that were replaced, and does what the lists say."""
        while True:
            self._changed.clear()
            try:
                await self.obey()
            except CipherBoxError as error:
                log.error("Revocation lists could not be obeyed", extra={"error": str(error)})
            while not self._changed.is_set():
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
                await self._look()

    async def _look(self) -> None:
        stamp = _stamp(self._hq.config)
        if stamp == self._stamp:
            return
        material = self._hq.trust.material
        # In a thread: a list of a hundred thousand entries takes a second or two.
        found, refused = await trio.to_thread.run_sync(look_at_lists, self._hq.config, material)
        if material is not self._hq.trust.material:
            return  # of other CAs now; it is looked at again
        older = self._older(found)
        self.adopt({**self.found, **{ca: one for ca, one in found.items() if ca not in older}})
        self._stamp = stamp
        self.trouble = "; ".join([*refused, *older.values()])
        log.info("Revocation lists were read again", extra={"count": len(self.found)})
        if self.trouble:
            log.error(
                "A revocation list was refused; what was known stays", extra={"error": self.trouble}
            )

    async def obey(self) -> None:
        """Ends what is revoked."""
        hq = self._hq
        for ca in self.found:
            await hq.engine.in_store(
                hq.store.put_setting, _setting(ca), str(self._numbers[ca]).encode()
            )
        if self.names_hq() and hq.trust.authority is not None:
            await self._replace_own()
        elif self.names_hq():
            await hq.certificate.look()
        if self.condemned:
            hq.end_all(HqRevoked(self.condemned))
        own = self.found.get(pki.fingerprint(hq.trust.issuing))
        if own is not None:
            async with hq.enrolments.lock:
                await obey_list(hq, own.says, own.der if hq.trust.authority is None else b"")

    async def _replace_own(self) -> None:
        """HQ has the CA's key: the list it makes names its certificate too, and it goes on with
        another one.
        """
        hq, old = self._hq, self._hq.trust.server
        at = self._own_says()[pki.serial(old)]
        row = hq.trust.record(old)._replace(client="", revoked_at=at)  # no client's
        await hq.engine.in_store(hq.store.put_certificate, row)
        hq.trust.put(row)
        await hq.engine.in_store(hq.trust.new_crl)
        await hq.certificate.look()
        if hq.trust.server != old:
            hq.end_all(GoingAway("HQ has another certificate; connect again"))

    def _own_says(self) -> Mapping[str, int]:
        """Whom the issuing CA's list names."""
        own = self.found.get(pki.fingerprint(self._hq.trust.issuing))
        return own.says.revoked if own is not None else {}

    def names_hq(self) -> bool:
        """Whether HQ's own certificate is on the issuing CA's list."""
        return pki.serial(self._hq.trust.server) in self._own_says()


def _setting(ca: bytes) -> str:
    """Where the highest number of a CA's list is kept that was read so far."""
    return f"list_number/{ca.hex()}"


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
    """Ends what a list of the issuing CA names: records, connections, clients that have nothing
    else; then the list.

    The caller has the lock of the enrolments.

    ``der`` is what clients get from now on, if it is newer than what they have; empty: HQ makes its
    own.
    """
    rows = hq.trust.named_by(says.revoked)
    for row in rows:
        await hq.engine.in_store(hq.store.put_certificate, row)
    hq.trust.put_revoked(rows)
    for name in sorted({row.client for row in rows}):
        await note_revocation(
            hq.engine, hq.store, name, [row.serial for row in rows if row.client == name]
        )
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
    hq.tell_revoked(
        f"revoked: {', '.join(gone)}; nothing is sealed for them any more" if gone else "", number
    )
