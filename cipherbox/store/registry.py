"""Bundles, enrolments, certificates and settings: rare rows, each written in a transaction of its
own.

All stores share these statements, which both SQLite and PostgreSQL accept, with values bound to
`?`.
"""

from __future__ import annotations

from abc import abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cipherbox.errors import Conflict, Damaged
from cipherbox.store.log_table import LogTable
from cipherbox.store.port import BundleRow, CertificateRow, Enrolment
from cipherbox.store.rows import decoding, number_of

T = TypeVar("T")
_LENGTH = 4
_MOST = (1 << 63) - 1
_YEAR_10000_MS = 253_402_300_800_000


def _text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _bundle(row: tuple[Any, ...]) -> BundleRow:
    client, sequence, digest, ciphertext, nonce, tag, added_at, ends_at = row
    with decoding(f"a key bundle of {client}"):
        parts = b64decode(ciphertext), b64decode(nonce), b64decode(tag)
    return BundleRow(client, sequence, digest, *parts, added_at, ends_at)


def _certificate(row: tuple[Any, ...]) -> CertificateRow:
    found = CertificateRow(*row)
    times = found.issued_at, found.expires_at, found.revoked_at
    if not all(0 <= at < _YEAR_10000_MS for at in times):  # as a calendar has them
        raise Damaged(
            f"a certificate of {found.client} is damaged in the database", remedy="restore a backup"
        )
    return found


def _pack(chain: Sequence[bytes]) -> bytes:
    return b"".join(len(c).to_bytes(_LENGTH, "big") + c for c in chain)


def _unpack(raw: bytes) -> tuple[bytes, ...]:
    chain = []
    while raw:
        end = _LENGTH + int.from_bytes(raw[:_LENGTH], "big")
        chain.append(raw[_LENGTH:end])
        raw = raw[end:]
    return tuple(chain)


class Registry(LogTable):
    """The part of the port that is not per envelope."""

    @abstractmethod
    def _write(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a transaction of its own."""

    def put_bundle(self, row: BundleRow) -> None:
        """Add a key bundle; raise Conflict if the client already has one of this number."""
        *head, ciphertext, nonce, tag, added_at, ends_at = row
        values = (*head, _text(ciphertext), _text(nonce), _text(tag), added_at, min(ends_at, _MOST))

        def work() -> None:
            if self._rows(
                "SELECT 1 FROM bundles WHERE client = ? AND sequence = ?",
                (row.client, row.sequence),
            ):
                raise Conflict(f"{row.client} already has a key bundle with number {row.sequence}")
            self._rows("INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

        self._write(work)

    def bundles(self, client: str, after: int, most: int = _MOST) -> list[BundleRow]:
        query = "SELECT * FROM bundles WHERE client = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        return [_bundle(row) for row in self._rows(query, (client, min(after, _MOST), most))]

    def newest_bundle(self, client: str) -> BundleRow | None:
        rows = self._rows(
            "SELECT * FROM bundles WHERE client = ? ORDER BY sequence DESC LIMIT 1", (client,)
        )
        return _bundle(rows[0]) if rows else None

    def bundle_count(self, client: str) -> int:
        return int(self._rows("SELECT count(*) FROM bundles WHERE client = ?", (client,))[0][0])

    def counts(self) -> dict[str, tuple[int, int]]:
        bundles, prekeys = (
            {
                client: int(n)
                for client, n in self._rows(f"SELECT client, count(*) FROM {table} GROUP BY client")
            }
            for table in ("bundles", "prekeys")
        )
        return {name: (bundles.get(name, 0), prekeys.get(name, 0)) for name in {*bundles, *prekeys}}

    def bundle_by_hash(self, bundle_hash: bytes) -> BundleRow | None:
        rows = self._rows("SELECT * FROM bundles WHERE bundle_hash = ?", (bundle_hash,))
        return _bundle(rows[0]) if rows else None

    def put_prekeys(
        self, client: str, signed: bytes, once: Sequence[tuple[int, bytes]], most: int, drop: bool
    ) -> int:
        """Add prekeys; raise Conflict, changing nothing, if that makes more than ``most``."""

        def work() -> int:
            if drop:
                self._rows("DELETE FROM prekeys WHERE client = ?", (client,))
            if signed:
                self._rows(upsert("prekey_offers", ("client", "signed")), (client, signed))
            for number, raw in once:
                self._rows(
                    upsert("prekeys", ("client", "number", "once"), 2), (client, number, raw)
                )
            (count,) = self._rows("SELECT count(*) FROM prekeys WHERE client = ?", (client,))[0]
            if once and count > most:
                raise Conflict(f"{client} would have {count} one-time prekeys, of at most {most}")
            return int(count)

        return self._write(work)

    def take_prekeys(self, client: str, once: bool) -> tuple[bytes, bytes]:
        """Return prekeys, deleting the one-time part in the same transaction: it is never
        reused.
        """

        def work() -> tuple[bytes, bytes]:
            offers = self._rows("SELECT signed FROM prekey_offers WHERE client = ?", (client,))
            if not offers:
                return b"", b""
            query = "SELECT number, once FROM prekeys WHERE client = ? ORDER BY number LIMIT 1"
            found = self._rows(query, (client,)) if once else []
            if found:
                self._rows(
                    "DELETE FROM prekeys WHERE client = ? AND number = ?", (client, found[0][0])
                )
            return bytes(offers[0][0]), bytes(found[0][1]) if found else b""

        return self._write(work)

    def put_enrolment(self, row: Enrolment) -> None:
        """Insert or replace an enrolment."""
        values = (
            row.secret_hash,
            row.client,
            row.role,
            int(row.approve),
            row.created_at,
            row.expires_at,
            row.state,
            row.csr,
            row.number,
            _pack(row.chain),
            int(row.replaces),
        )
        names = (
            "secret_hash",
            "client",
            "role",
            "approve",
            "created_at",
            "expires_at",
            "state",
            "csr",
            "number",
            "chain",
            "replaces",
        )
        self._put("enrolments", names, values)

    def enrolment(self, secret_hash: bytes) -> Enrolment | None:
        rows = self._rows("SELECT * FROM enrolments WHERE secret_hash = ?", (secret_hash,))
        return _enrolment(rows[0]) if rows else None

    def enrolments(self, states: Sequence[str], client: str = "") -> list[Enrolment]:
        of_one = " AND client = ?" if client else ""
        query = f"SELECT * FROM enrolments WHERE state IN ({','.join('?' * len(states))}){of_one}"
        values = [*states, client] if client else list(states)
        return [
            _enrolment(row) for row in self._rows(f"{query} ORDER BY created_at, client", values)
        ]

    def put_certificate(self, row: CertificateRow) -> None:
        self._put("certificates", CertificateRow._fields, row)

    def certificates(self, client: str | None = None) -> list[CertificateRow]:
        query, order = "SELECT * FROM certificates", " ORDER BY client, issued_at"
        values = () if client is None else (client,)
        rows = self._rows(f"{query}{' WHERE client = ?' if values else ''}{order}", values)
        return [_certificate(row) for row in rows]

    def revoke_certificates(self, client: str, at: int) -> list[CertificateRow]:
        """Revoke those certificates of a client that are not revoked yet; return all of them."""
        statement = "UPDATE certificates SET revoked_at = ? WHERE client = ? AND revoked_at = 0"
        self._write(lambda: self._rows(statement, (at, client)))
        return self.certificates(client)

    def get_setting(self, name: str) -> bytes | None:
        rows = self._rows("SELECT value FROM settings WHERE name = ?", (name,))
        return bytes(rows[0][0]) if rows else None

    def get_number(self, name: str) -> int:
        return number_of(name, self.get_setting(name))

    def put_setting(self, name: str, value: bytes) -> None:
        self._put("settings", ("name", "value"), (name, value))

    def _put(self, table: str, names: Sequence[str], values: Sequence[Any]) -> None:
        """Insert a row, or replace the one with the same first column."""
        self._write(lambda: self._rows(upsert(table, names), values))


def upsert(table: str, names: Sequence[str], keys: int = 1) -> str:
    """Return an INSERT that replaces the row whose first ``keys`` columns are the same."""
    marks = ", ".join("?" * len(names))
    changes = ", ".join(f"{name} = excluded.{name}" for name in names[keys:])
    where = ", ".join(names[:keys])
    action = f"UPDATE SET {changes}" if changes else "NOTHING"
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks}) ON CONFLICT ({where}) DO "
        f"{action}"
    )


def _enrolment(row: tuple[object, ...]) -> Enrolment:
    *head, chain, replaces = row
    fields: list[object] = [*head, _unpack(bytes(chain)), bool(replaces)]  # type: ignore[call-overload]
    fields[3] = bool(fields[3])
    return Enrolment(*fields)  # type: ignore[arg-type]
