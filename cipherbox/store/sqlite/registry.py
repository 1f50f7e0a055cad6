"""Bundles, enrolments, certificates and settings: rare rows, each written in a transaction of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from cipherbox.errors import Conflict
from cipherbox.store.port import BundleRow, CertificateRow, Enrolment
from cipherbox.store.sqlite.database import Connection, translated

T = TypeVar("T")
_LENGTH = 4
_MOST = (1 << 63) - 1


def _text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _bundle(row: tuple[Any, ...]) -> BundleRow:
    client, sequence, digest, ciphertext, nonce, tag, added_at, ends_at = row
    parts = b64decode(ciphertext), b64decode(nonce), b64decode(tag)
    return BundleRow(client, sequence, digest, *parts, added_at, ends_at)


def _pack(chain: Sequence[bytes]) -> bytes:
    return b"".join(len(c).to_bytes(_LENGTH, "big") + c for c in chain)


def _unpack(raw: bytes) -> tuple[bytes, ...]:
    chain = []
    while raw:
        end = _LENGTH + int.from_bytes(raw[:_LENGTH], "big")
        chain.append(raw[_LENGTH:end])
        raw = raw[end:]
    return tuple(chain)


class Registry(ABC):
    """The part of the port that is not per envelope."""

    db: Connection

    @abstractmethod
    def _write(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a transaction of its own."""

    def put_bundle(self, row: BundleRow) -> None:
        """Conflict if this client has a bundle of this number already."""
        *head, ciphertext, nonce, tag, added_at, ends_at = row
        values = (*head, _text(ciphertext), _text(nonce), _text(tag), added_at, min(ends_at, _MOST))

        def work() -> None:
            found = self.db.execute(
                "SELECT 1 FROM bundles WHERE client = ? AND sequence = ?", (row.client, row.sequence)
            ).fetchone()
            if found:
                raise Conflict(f"{row.client} has a key bundle of number {row.sequence} already")
            self.db.execute("INSERT INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

        self._write(work)

    def bundles(self, client: str, after: int) -> list[BundleRow]:
        query = "SELECT * FROM bundles WHERE client = ? AND sequence > ? ORDER BY sequence"
        with translated():
            return [_bundle(row) for row in self.db.execute(query, (client, min(after, _MOST)))]

    def bundle_by_hash(self, bundle_hash: bytes) -> BundleRow | None:
        with translated():
            row = self.db.execute("SELECT * FROM bundles WHERE bundle_hash = ?", (bundle_hash,)).fetchone()
        return _bundle(row) if row else None

    def put_enrolment(self, row: Enrolment) -> None:
        """Inserts or replaces."""
        values = (row.secret_hash, row.client, row.role, row.approve, row.created_at, row.expires_at, row.state,
                  row.csr, row.number, _pack(row.chain))  # fmt: skip
        self._put("INSERT OR REPLACE INTO enrolments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def enrolment(self, secret_hash: bytes) -> Enrolment | None:
        with translated():
            row = self.db.execute("SELECT * FROM enrolments WHERE secret_hash = ?", (secret_hash,)).fetchone()
        return _enrolment(row) if row else None

    def enrolments(self, states: Sequence[str]) -> list[Enrolment]:
        marks = ",".join("?" * len(states))
        query = f"SELECT * FROM enrolments WHERE state IN ({marks}) ORDER BY created_at, client"
        with translated():
            return [_enrolment(row) for row in self.db.execute(query, list(states))]

    def put_certificate(self, row: CertificateRow) -> None:
        self._put("INSERT OR REPLACE INTO certificates VALUES (?, ?, ?, ?, ?, ?)", row)

    def certificates(self, client: str | None = None) -> list[CertificateRow]:
        query = "SELECT * FROM certificates WHERE ?1 IS NULL OR client = ?1 ORDER BY client, issued_at"
        with translated():
            return [CertificateRow(*row) for row in self.db.execute(query, (client,))]

    def revoke_certificates(self, client: str, at: int) -> list[CertificateRow]:
        """Marks every certificate of the client that was not revoked before; returns all of them."""
        self._put("UPDATE certificates SET revoked_at = ? WHERE client = ? AND revoked_at = 0", (at, client))
        return self.certificates(client)

    def get_setting(self, name: str) -> bytes | None:
        with translated():
            row = self.db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def put_setting(self, name: str, value: bytes) -> None:
        self._put("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def _put(self, statement: str, values: Sequence[Any]) -> None:
        self._write(lambda: self.db.execute(statement, values))


def _enrolment(row: tuple[object, ...]) -> Enrolment:
    *head, chain = row
    fields: list[object] = [*head, _unpack(bytes(chain))]  # type: ignore[call-overload]
    fields[3] = bool(fields[3])
    return Enrolment(*fields)  # type: ignore[arg-type]
