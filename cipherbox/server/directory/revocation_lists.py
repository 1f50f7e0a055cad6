"""Revocation lists in files: of an organization's CAs, or of an issuing CA whose key is elsewhere.

`[ca] revocation_lists` names a file or a directory of `*.crl`.  They are read at the start, at a
reload, and automatically when a file is replaced.  Each list applies to the CA whose name and key
signed it:

    the issuing CA          its clients' certificates end immediately, with their connections; if
                            HQ does not make that list itself, clients get this one
    the root,               if it names a CA below it on HQ's chain, nothing that the chain
    an intermediate CA      certifies is accepted
    any of them             if it names HQ's own certificate, new connections are refused until
                            HQ has a new one

A file that is incomplete, of an unknown CA, a partial list, or older than one read before is
refused: HQ does not start with it, and while it runs the previous list of that CA stays in effect.
An expired list stays in effect; `stale_lists = "refuse"` refuses all connections until there is a
newer one.
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


class FiledList(NamedTuple):
    """One list, its CA and its file."""

    ca: x509.Certificate
    der: bytes
    crl: RevocationList
    file: Path


Stamp = tuple[tuple[str, int, int, int], ...]


def files_of(config: ServerConfig) -> list[Path]:
    """Return the files with lists."""
    named = config.ca.revocation_lists
    if named is None:
        return []
    return sorted(named.glob("*.crl")) if named.is_dir() else [named]


class ListReading(NamedTuple):
    """The newest list of each CA, by its fingerprint, and why others were refused."""

    found: dict[bytes, FiledList]
    refused: list[Problem]


def inspect_lists(
    config: ServerConfig, material: Credentials, at: datetime | None = None
) -> ListReading:
    """Read all files, as they are valid ``at`` a time, else now; each is read completely or
    refused.
    """
    reading = ListReading({}, [])
    for file in files_of(config):
        try:
            for der in lists_in(file.read_bytes(), str(file)):
                one = _listed(der, material, file, at or clock.now())
                before = reading.found.get(pki.fingerprint(one.ca))
                if before is None or before.crl.number <= one.crl.number:
                    reading.found[pki.fingerprint(one.ca)] = one
        except OSError as error:
            reading.refused.append(Problem(f"cannot read {file}: {error.strerror}"))
        except CredentialsError as error:
            reading.refused.extend(error.problems)
    return reading


def read_lists(
    config: ServerConfig, material: Credentials, at: datetime | None = None
) -> dict[bytes, FiledList]:
    """Return the newest list of each CA; raise ConfigError, naming the file, if one is invalid."""
    found, refused = inspect_lists(config, material, at)
    if refused:
        raise ConfigError.of(refused)
    return found


def _listed(der: bytes, material: Credentials, file: Path, at: datetime) -> FiledList:
    why = CredentialsError("no CA of this HQ signed this revocation list")
    for ca in (*material.chain, material.root):
        if issuer_of(der) != ca.subject:
            continue
        try:
            return FiledList(ca, der, read_crl(der, ca, at), file)
        except CredentialsError as error:
            why = error
    raise CredentialsError(f"{file}: {why.what}", remedy=why.remedy)


def why_revoked(found: Iterable[FiledList], material: Credentials) -> str:
    """Return why HQ's chain or HQ itself is revoked; empty if it is not."""
    steps = zip([material.server, *material.chain], [*material.chain, material.root], strict=True)
    below = {pki.fingerprint(parent): child for child, parent in steps}
    for one in found:
        child = below.get(pki.fingerprint(one.ca))
        if child is None or pki.serial(child) not in one.crl.revoked:
            continue
        if child == material.server:
            return (
                f"HQ's own certificate was revoked: the list {one.file} names its serial number "
                f"{pki.serial(child)}"
            )
        return (
            f"the organization revoked {child.subject.rfc4514_string()}, which certifies all "
            "clients of this HQ"
        )
    return ""


class RevocationLists:
    """The revocation lists in effect.

    ``trouble`` says which files were refused and why, ``chain_revoked`` why HQ's chain is revoked;
    both are empty otherwise.
    """

    def __init__(self, live: LiveConfig, store: Store, trust: Trust) -> None:
        self._live, self._store, self._trust = live, store, trust
        self.trouble = self.chain_revoked = ""
        cas = map(pki.fingerprint, (*trust.material.chain, trust.root))
        # the highest number ever read, by CA
        self._numbers = {ca: store.get_number(_setting(ca)) for ca in cas}
        self.changed = Flag()  # other lists are in effect
        self.adopt(self.read(live.now, trust.material))

    @property
    def ends(self) -> datetime | None:
        """Return when the first of them expires."""
        return min((one.crl.next_update for one in self.found.values()), default=None)

    def stale(self) -> str:
        """Return which lists have expired; empty if none has."""
        old = [one for one in self.found.values() if one.crl.next_update <= self._trust.clock.now()]
        return "; ".join(
            f"{one.file} expired on {one.crl.next_update:%Y-%m-%d %H:%M} UTC" for one in old
        )

    def refusal(self) -> str:
        """Return why all connections are refused at present; empty if they are not."""
        return self.stale() if self._live.now.ca.stale_lists == "refuse" else ""

    def read(self, config: ServerConfig, material: Credentials) -> dict[bytes, FiledList]:
        """Read the files; raise ConfigError if one is invalid or older than one read before."""
        found = read_lists(config, material, self._trust.clock.now())
        if older := self._older(found):
            raise ConfigError("\n".join(older.values()))
        return found

    def _older(self, found: Mapping[bytes, FiledList]) -> dict[bytes, str]:
        """Return the lists that are older than one read before, even before HQ's last start, with
        the reason for refusing them.
        """
        return {
            ca: f"{one.file} has number {one.crl.number}, but {self._numbers[ca]} was read before"
            for ca, one in found.items()
            if one.crl.number < self._numbers.get(ca, 0)
        }

    def adopt(self, found: dict[bytes, FiledList]) -> None:
        """Put these lists into effect."""
        self.found, self.trouble = found, ""
        self._numbers.update(
            {ca: max(one.crl.number, self._numbers.get(ca, 0)) for ca, one in found.items()}
        )
        self.check_chain()
        self._stamp = _stamp(self._live.now)
        self.changed.set()

    def check_chain(self) -> None:
        """Check whether a certificate of HQ's current chain is revoked."""
        self.chain_revoked = why_revoked(self.found.values(), self._trust.material)

    async def change(self) -> None:
        """Wait until other lists are in effect, rereading files that are replaced."""
        while not self.changed.is_set():
            with trio.move_on_after(LOOK_S):
                await self.changed.wait()
            await self._reread()

    async def _reread(self) -> None:
        stamp = _stamp(self._live.now)
        if stamp == self._stamp:
            return
        material = self._trust.material
        # in a thread: a list of a hundred thousand entries takes a second or two
        found, refused = await trio.to_thread.run_sync(
            inspect_lists, self._live.now, material, self._trust.clock.now()
        )
        if material is not self._trust.material:
            return  # the CAs changed meanwhile; the next round reads the files again
        older = self._older(found)
        self.adopt({**self.found, **{ca: one for ca, one in found.items() if ca not in older}})
        self._stamp = stamp
        self.trouble = "; ".join([*refused, *older.values()])
        log.info("Revocation lists reloaded", extra={"count": len(self.found)})
        if self.trouble:
            log.error(
                "A revocation list was refused; the previous one stays in effect",
                extra={"error": self.trouble},
            )

    def remember(self) -> None:
        """Store the highest numbers; runs in the store's thread."""
        for ca in self.found:
            self._store.put_setting(_setting(ca), str(self._numbers[ca]).encode())

    def own(self) -> FiledList | None:
        """Return the newest list of the issuing CA."""
        return self.found.get(pki.fingerprint(self._trust.issuing))

    def own_revoked(self) -> Mapping[str, int]:
        """Return the serial numbers on the issuing CA's list, with their times of revocation."""
        own = self.own()
        return own.crl.revoked if own is not None else {}

    def own_is_revoked(self) -> bool:
        """Return whether HQ's own certificate is on the issuing CA's list."""
        return pki.serial(self._trust.server) in self.own_revoked()


def _setting(ca: bytes) -> str:
    """Return the setting with the highest number read of a CA's lists."""
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
