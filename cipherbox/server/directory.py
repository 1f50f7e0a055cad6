"""Key bundles at HQ: taken from their owners, kept encrypted, handed out complete.

HQ checks what it takes (certified, the owner's own, one number higher, continued by the keys before) so that mistakes
show at once; senders check all of it again, since HQ is not trusted with it.  A client that lost its keys is enrolled
again by an admin and may then go on without continuity: its senders must compare fingerprints first.

Rows are encrypted with ChaCha20-Poly1305 under the configured 32-byte key, the client id as associated data.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox import pki
from cipherbox.envelope.bundle import KeyBundle, check_bundle, check_succession, decode_bundle
from cipherbox.errors import BundleDiscontinuous, BundleError, BundleRefused, Damaged
from cipherbox.ops.logs import get_logger
from cipherbox.server.enrolment import DONE, renewal_name
from cipherbox.server.trust import Trust
from cipherbox.store.port import BundleRow, Enrolment, Store
from cipherbox.wire.frames import BundleAnswer, BundleQuery

T = TypeVar("T")
log = get_logger(__name__)
_TAG = 16
KNOWN, NOT_FOUND, REVOKED = 0, 1, 2


class Directory:
    """See the module.  ``in_store`` runs a store call in the store's thread."""

    def __init__(self, store: Store, trust: Trust, key: bytes, in_store: Callable[..., Awaitable[T]]) -> None:
        self._store = store
        self._trust = trust
        self._aead = ChaCha20Poly1305(key)
        self._in_store: Callable[..., Awaitable[object]] = in_store

    async def register(self, client: str, raw: bytes) -> bool:
        """Takes a client's own bundle; True if it is new.  BundleRefused says why not."""
        now = pki.ms(pki.now())
        held: list[BundleRow] = await self._in_store(self._store.bundles, client, 0)  # type: ignore[assignment]
        try:
            bundle = decode_bundle(raw)
            if held and held[-1].bundle_hash == bundle.hash:
                return False
            check_bundle(bundle, client, self._trust.root, now)
            if held:
                await self._check_next(held[-1], bundle)
        except BundleError as error:
            raise BundleRefused(f"HQ did not accept the key bundle: {error}") from error
        nonce = os.urandom(12)
        sealed = self._aead.encrypt(nonce, raw, client.encode())
        row = BundleRow(
            client, bundle.sequence, bundle.hash, sealed[:-_TAG], nonce, sealed[-_TAG:], now, bundle.ends_at
        )
        await self._in_store(self._store.put_bundle, row)
        return True

    async def _check_next(self, last: BundleRow, bundle: KeyBundle) -> None:
        """Continued by the keys before; or those were lost, and an admin has enrolled this client again since."""
        try:
            check_succession(self._open(last), [bundle])
        except BundleDiscontinuous:
            rows: list[Enrolment] = await self._in_store(self._store.enrolments, (DONE,))  # type: ignore[assignment]
            mine = [row for row in rows if row.client == last.client and row.created_at > last.added_at]
            if all(row.secret_hash == renewal_name(row.client, row.csr) for row in mine):
                raise
            log.warning("Keys begin anew after another enrolment", extra={"client": last.client})

    async def newest(self, client: str) -> KeyBundle | None:
        """The bundle a client registered last."""
        held: list[BundleRow] = await self._in_store(self._store.bundles, client, 0)  # type: ignore[assignment]
        return self._open(held[-1]) if held else None

    async def by_client(self, query: BundleQuery) -> BundleAnswer:
        """Every bundle of a client after the one the asker holds."""
        rows: list[BundleRow] = await self._in_store(  # type: ignore[assignment]
            self._store.bundles, query.client_id, query.after
        )
        revoked_at = self._trust.revoked_at(query.client_id)
        if not rows and not query.after and not revoked_at:
            return BundleAnswer(query.client_id, NOT_FOUND, 0, [])
        state = REVOKED if revoked_at else KNOWN
        return BundleAnswer(query.client_id, state, revoked_at, [self._open(row).raw for row in rows])

    async def by_hash(self, bundle_hash: bytes) -> BundleAnswer:
        """The one bundle with this hash."""
        row: BundleRow | None = await self._in_store(self._store.bundle_by_hash, bundle_hash)  # type: ignore[assignment]
        if row is None:
            return BundleAnswer("", NOT_FOUND, 0, [])
        revoked_at = self._trust.revoked_at(row.client)
        return BundleAnswer(row.client, REVOKED if revoked_at else KNOWN, revoked_at, [self._open(row).raw])

    def _open(self, row: BundleRow) -> KeyBundle:
        try:
            return decode_bundle(self._aead.decrypt(row.nonce, row.ciphertext + row.tag, row.client.encode()))
        except InvalidTag:
            raise Damaged(f"key bundle {row.sequence} of {row.client} does not open with the database key") from None
