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
from typing import NamedTuple

import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.concurrency import Flag
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import ConfigError, CredentialsError, Problem
from cipherbox.ops.logs import get_logger
from cipherbox.pki.revocation_lists import RevocationList, issuer_of, lists_in, read_crl
from cipherbox.server.ca.credentials import Credentials
from cipherbox.server.directory.trust import Trust
from cipherbox.server.live_config import LiveConfig
from cipherbox.store.port import Store

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
    refused: list[Problem]


def inspect_lists(config: ServerConfig, material: Credentials) -> Reading:
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
            reading.refused.append(Problem(f"cannot read {file}: {error.strerror}"))
        except CredentialsError as error:
            reading.refused.extend(error.problems)
    return reading


def read_lists(config: ServerConfig, material: Credentials) -> dict[bytes, Listed]:
    """The newest list of each CA, by its fingerprint; ConfigError names the file that is wrong."""
    found, refused = inspect_lists(config, material)
    if refused:
        raise ConfigError.of(refused)
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
    raise CredentialsError(f"{file}: {why.what}", remedy=why.remedy)


def why_revoked(found: Iterable[Listed], material: Credentials) -> str:
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
    """See the module.

    ``trouble``: which files were refused, and why.  ``chain_revoked``: why nothing of HQ's chain is
    accepted; empty: it is.
    """

    def __init__(self, live: LiveConfig, store: Store, trust: Trust) -> None:
        self._live, self._store, self._trust = live, store, trust
        self.trouble = self.chain_revoked = ""
        cas = map(pki.fingerprint, (*trust.material.chain, trust.root))
        # the highest ever read
        self._numbers = {ca: int(store.get_setting(_setting(ca)) or b"0") for ca in cas}
        self.changed = Flag()  # other lists count
        self.adopt(self.read(live.now, trust.material))

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
        return self.stale() if self._live.now.ca.stale_lists == "refuse" else ""

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
        self.check_chain()
        self._stamp = _stamp(self._live.now)
        self.changed.set()

    def check_chain(self) -> None:
        """Look whether a certificate of HQ's chain, as it is now, is on one of them."""
        self.chain_revoked = why_revoked(self.found.values(), self._trust.material)

    async def change(self) -> None:
        """Wait until other lists count; meanwhile read files that were replaced."""
        while not self.changed.is_set():
            with trio.move_on_after(LOOK_S):
                await self.changed.wait()
            await self._reread()

    async def _reread(self) -> None:
        stamp = _stamp(self._live.now)
        if stamp == self._stamp:
            return
        material = self._trust.material
        # In a thread: a list of a hundred thousand entries takes a second or two.
        found, refused = await trio.to_thread.run_sync(inspect_lists, self._live.now, material)
        if material is not self._trust.material:
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

    def remember(self) -> None:
        """Store the highest numbers; runs in the store's thread."""
        for ca in self.found:
            self._store.put_setting(_setting(ca), str(self._numbers[ca]).encode())

    def own(self) -> Listed | None:
        """Return the newest list of the issuing CA."""
        return self.found.get(pki.fingerprint(self._trust.issuing))

    def own_says(self) -> Mapping[str, int]:
        """Whom the issuing CA's list names."""
        own = self.own()
        return own.says.revoked if own is not None else {}

    def own_is_revoked(self) -> bool:
        """Whether HQ's own certificate is on the issuing CA's list."""
        return pki.serial(self._trust.server) in self.own_says()


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
