"""Key bundles at HQ: registered by their owners, stored encrypted, served with proofs.

HQ checks what it accepts (certified, the owner's own, the next number, signed by the previous keys)
so that mistakes show immediately; senders repeat all checks, since HQ is not trusted with them.  A
client that lost its keys is enrolled again by an admin; its first bundle under the certificate from
that token may start a new chain of keys, once.  The signed log records it, and its senders must
compare fingerprints first.

HQ repeats the checks on what it serves: the bundle matches its row, is certified, and is named in
HQ's signed log, whose proof is served with it.  A bundle that the log does not name yet, or names
under a replaced log key, is added to the log first.

Rows are encrypted with ChaCha20-Poly1305 under the configured 32-byte key, the client id as
associated data.
"""

from __future__ import annotations

import enum
import os
from collections import OrderedDict

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox.broker import model as m
from cipherbox.broker.usage import BUNDLES, PREKEYS
from cipherbox.envelope.bundle import KeyBundle, check_bundle, check_succession, decode_bundle
from cipherbox.envelope.transparency_log import BUNDLE, bundle_payload, verify_bundle_proof
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleRefused,
    Damaged,
    EnvelopeError,
    InvalidRequest,
    LimitReached,
)
from cipherbox.limits import LIMITS
from cipherbox.ops.logs import get_logger
from cipherbox.server.directory.enrolment import DONE, renewal_name
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.store.port import BundleRow, Enrolment, Store
from cipherbox.wire.frames import NEWEST, BundleAnswer, BundleQuery, GetBundles

log = get_logger(__name__)
_TAG = 16
_PROOF_SETTING = "bundle-proof/"
KNOWN, NOT_FOUND, REVOKED = 0, 1, 2
_CACHED_PROOFS = 65_536  # a few hundred bytes each


class Registration(enum.Enum):
    """The outcome of a registration."""

    DUPLICATE = "duplicate"  # HQ has it already
    NEW = "new"
    RESTARTED = "restarted"  # the first after another enrolment, not signed by the previous keys


class Directory:
    """The key bundles of all clients."""

    def __init__(self, store: Store, trust: Trust, key: bytes, engine: Engine) -> None:
        self._store = store
        self._trust = trust
        self._aead = ChaCha20Poly1305(key)
        self._engine = engine
        self._in_store = engine.in_store
        self._proofs: OrderedDict[bytes, bytes] = OrderedDict()  # of checked bundles, by hash
        self._naming = trio.Lock()

    async def register(self, client: str, raw: bytes) -> Registration:
        """Register a client's own bundle; raise BundleRefused or LimitReached."""
        now = self._trust.clock.now_ms()
        held = await self._in_store(self._store.newest_bundle, client)
        try:
            bundle = decode_bundle(raw)
            if held is not None and held.bundle_hash == bundle.hash:
                return Registration.DUPLICATE
            check_bundle(bundle, client, self._trust.root, now)
            anew = held is not None and await self._check_next(held, bundle)
        except BundleError as error:
            raise BundleRefused(f"HQ refused the key bundle: {error}") from error
        most = self._engine.broker.state.totals.limit_of(client, BUNDLES)
        if (count := await self._in_store(self._store.bundle_count, client)) >= most:
            raise LimitReached(
                f"{client} has {count} key bundles, of at most {most}; none is ever deleted"
            )
        nonce = os.urandom(12)
        sealed = self._aead.encrypt(nonce, raw, client.encode())
        row = BundleRow(
            client,
            bundle.sequence,
            bundle.hash,
            sealed[:-_TAG],
            nonce,
            sealed[-_TAG:],
            now,
            bundle.ends_at,
        )
        # it is in the log before anybody sees it, and nothing signed by the previous keys is served
        if anew:
            await self._engine.call(
                lambda n: m.KeysAnew(0, "", n, client, bundle.sequence, bundle.hash.hex())
            )
            most = self._engine.broker.state.totals.limit_of(client, PREKEYS)
            await self._in_store(self._store.put_prekeys, client, b"", (), most, True)
        await self._in_store(self._store.put_bundle, row)
        await self._proof(bundle)
        return Registration.RESTARTED if anew else Registration.NEW

    async def _check_next(self, held: BundleRow, bundle: KeyBundle) -> bool:
        """Return whether the bundle starts a new chain of keys, which a token allows once; raise
        BundleError if it neither may do that nor continues the newest one.
        """
        last = self._open(held)
        try:
            check_succession(last, [bundle])
        except BundleDiscontinuous as error:
            follows = bundle.sequence == last.sequence + 1 and bundle.previous_hash == last.hash
            if not (bundle.breaks_continuity and follows):
                raise
            leaf = bundle.chain[0]
            rows: list[Enrolment] = await self._in_store(
                self._store.enrolments, (DONE,), bundle.client_id
            )
            by_token = [row for row in rows if row.secret_hash != renewal_name(row.client, row.csr)]
            before = map(self._open, await self._in_store(self._store.bundles, bundle.client_id, 0))
            if not any(leaf in row.chain[:1] for row in by_token) or any(
                leaf == one.chain[0] for one in before
            ):
                raise BundleDiscontinuous(
                    f"{error}. Keys begin anew only once for each token: cipherbox enroll "
                    f"{bundle.client_id} --replace"
                ) from None
            log.warning(
                "Keys begin anew after another enrolment", extra={"client": bundle.client_id}
            )
            return True
        return False

    async def newest(self, client: str) -> KeyBundle | None:
        """Return the newest bundle of a client."""
        held = await self._in_store(self._store.newest_bundle, client)
        return self._open(held) if held is not None else None

    async def answers(
        self, query: GetBundles, most_bytes: int
    ) -> tuple[list[BundleAnswer], list[bytes]]:
        """Return the bundles asked for, and the proof for each that the log names it.

        Bundles of a client that do not fit are left out (``more``), and the client asks again.  The
        first bundle always fits, so this terminates.  Raise InvalidRequest if those asked for by
        hash have more than ``most_bytes``.
        """
        answers: list[BundleAnswer] = []
        proofs: list[bytes] = []
        left = most_bytes
        by_hash = [await self._by_hash(one) for one in query.hashes]
        left -= sum(len(bundle.raw) for _, bundles in by_hash for bundle in bundles)
        if left < 0:
            raise InvalidRequest(
                "these key bundles do not fit into one answer", remedy="ask for fewer at once"
            )
        for one in query.clients:
            answer, bundles = await self._by_client(one)
            fit = 0
            while fit < len(bundles) and (left >= len(bundles[fit].raw) or not proofs):
                left -= len(bundles[fit].raw)
                proofs.append(await self._proof(bundles[fit]))
                fit += 1
            if fit < len(bundles):
                answer = BundleAnswer(
                    answer.client_id, answer.state, answer.revoked_at, answer.bundles[:fit], True
                )
            answers.append(answer)
        for answer, bundles in by_hash:
            answers.append(answer)
            proofs += [await self._proof(bundle) for bundle in bundles]
        return answers, proofs

    async def _by_client(self, query: BundleQuery) -> tuple[BundleAnswer, list[KeyBundle]]:
        """Return the next bundles of a client after the one the requester has, or the
        newest one.
        """
        most = LIMITS.bundles_per_answer
        if query.after == NEWEST:
            newest = await self._in_store(self._store.newest_bundle, query.client_id)
            rows = [newest] if newest is not None else []
        else:
            rows = await self._in_store(self._store.bundles, query.client_id, query.after, most + 1)
        revoked_at = self._trust.revoked_at(query.client_id)
        if not rows and query.after in (0, NEWEST) and not revoked_at:
            return BundleAnswer(query.client_id, NOT_FOUND, 0, [], False), []
        return self._answer(query.client_id, revoked_at, rows[:most], len(rows) > most)

    async def ends_at(self, client: str, bundle_hash: bytes) -> int:
        """Return when a client's bundle with this hash ends, ms since 1970; 0 without one."""
        row = await self._in_store(self._store.bundle_by_hash, bundle_hash)
        return row.ends_at if row is not None and row.client == client else 0

    async def _by_hash(self, bundle_hash: bytes) -> tuple[BundleAnswer, list[KeyBundle]]:
        """Return the bundle with this hash."""
        row = await self._in_store(self._store.bundle_by_hash, bundle_hash)
        if row is None:
            return BundleAnswer("", NOT_FOUND, 0, [], False), []
        return self._answer(row.client, self._trust.revoked_at(row.client), [row], False)

    def _answer(
        self, client: str, revoked_at: int, rows: list[BundleRow], more: bool
    ) -> tuple[BundleAnswer, list[KeyBundle]]:
        bundles = [self._open(row) for row in rows]
        state = REVOKED if revoked_at else KNOWN
        return BundleAnswer(
            client, state, revoked_at, [bundle.raw for bundle in bundles], more
        ), bundles

    async def _proof(self, bundle: KeyBundle) -> bytes:
        known = self._proofs.get(bundle.hash)
        if known is not None:
            return known
        name = f"{_PROOF_SETTING}{bundle.hash.hex()}"
        async with self._naming:
            proof = await self._in_store(self._store.get_setting, name)
            if proof is None or not self._holds(proof, bundle):
                payload = bundle_payload(bundle.client_id, bundle.sequence, bundle.hash)
                proof = await self._engine.note(BUNDLE, payload)
                await self._in_store(self._store.put_setting, name, proof)
        self._proofs[bundle.hash] = proof
        if len(self._proofs) > _CACHED_PROOFS:
            self._proofs.popitem(last=False)
        return proof

    def _holds(self, proof: bytes, bundle: KeyBundle) -> bool:
        if not self._engine.log_key:
            return not proof
        try:
            verify_bundle_proof(
                proof, bundle.client_id, bundle.sequence, bundle.hash, self._engine.log_key
            )
        except EnvelopeError:
            return False
        return True

    def _open(self, row: BundleRow) -> KeyBundle:
        what = f"key bundle {row.sequence} of {row.client}"
        try:
            bundle = decode_bundle(
                self._aead.decrypt(row.nonce, row.ciphertext + row.tag, row.client.encode())
            )
            if (bundle.client_id, bundle.sequence, bundle.hash) != (
                row.client,
                row.sequence,
                row.bundle_hash,
            ):
                raise Damaged(f"{what} does not match its row and is not served")
            if bundle.hash not in self._proofs:
                check_bundle(
                    bundle, row.client, self._trust.root, 0, ended_is_error=False, history=True
                )
        except InvalidTag:
            raise Damaged(f"{what} cannot be decrypted with the database key") from None
        except BundleError as error:
            raise Damaged(f"{what} is invalid and is not served: {error}") from None
        return bundle
