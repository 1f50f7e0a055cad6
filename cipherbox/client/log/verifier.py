"""Verify HQ's signed log on the client's side: `LogProofVerifier`.

Rules.
1. WELCOME shows the log's key and its newest head; a client does nothing with an HQ that shows
   neither.
2. Every CONFIRM and every key bundle comes with a proof that the log names it. A confirm with an
   invalid proof does not count: the envelope stays in the outbox, and the connection ends with the
   reason.
3. Every observed head (in a WELCOME, a proof, a receipt, a cosignature) must be consistent with the
   newest one that any program of this home has verified; HQ is asked for the proofs, for many heads
   in one request, and at most a few times a second. The newest verified head is durable, and
   travels in this client's receipts. A head over one more entry than an observed one needs no proof
   from HQ if it came with that entry: the entry's path is the log before it. Then only the later
   head is left to be proven.
4. Inconsistent heads are a contradiction. It stops every program of this home until a person has
   decided, and leaves one file of evidence. Only one thing explains it: an admin's signed statement
   in the log that HQ was restored from a backup (`client.log.restores`).

The log does not prove that a key is its owner's: pins, succession and comparison by people do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import trio

from cipherbox import clock, pki
from cipherbox.client.events import LINE, Events
from cipherbox.client.home import Home
from cipherbox.client.keys.pins import LOG_KEY, Pins
from cipherbox.client.log.bundle_proofs import BundleProofs
from cipherbox.client.log.heads import Head, Heads, contradiction_text, first_inconsistent, is_lost
from cipherbox.client.log.ports import ConnectionRequester, Requester, ShownLog
from cipherbox.client.log.quorum import Quorum
from cipherbox.client.log.restores import Ended, ended_origins, left_of
from cipherbox.concurrency import Flag
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.envelope.evidence import Evidence, compare, make_file, words
from cipherbox.envelope.merkle_tree import split_hashes
from cipherbox.errors import (
    CipherBoxError,
    EnvelopeError,
    LogContradiction,
    LogMissing,
    LogUnproven,
    StoreError,
)
from cipherbox.portable import write_atomic
from cipherbox.wire import frames

_SIZES = 256  # heads in one request
MAX_UNPROVEN = 16_384  # heads that wait for HQ's proof, some 16 MB
COVER_S = 1.0  # between checks for cosignatures, when they are required
PAUSE_S = 0.5  # between rounds of requests
RETRY_S = 5.0
FINISH_S = 2.0
PROOF_TIMEOUT_S = 60.0  # for an HQ that does not prove that its heads are consistent
_TRIES = 5  # while other programs of this home verify heads too


class LogProofVerifier:
    """Verifies heads and proofs for this client's ``home``. ``root`` is the CA's certificate,
    ``quorum`` its required witnesses.
    """

    def __init__(
        self, home: Path, client_id: str, root: Any, pins: Pins, events: Events, quorum: Quorum
    ) -> None:
        self._home, self._client_id, self._root = home, client_id, root
        self._pins, self._events, self.quorum = pins, events, quorum
        self.heads = Heads(home)
        self._key = pins.log_key()
        self._work = Flag()
        self._newest = self.heads.newest()
        self._ended = self.heads.ended()
        self._unproven: dict[object, Head] = {}  # what HQ has yet to prove
        for head in self.heads.unproven():
            self._observe(head)
        self.bundle_proofs = BundleProofs()
        self._current: ShownLog | None = None
        self._contradiction: str | None = None

    @classmethod
    def of(cls, home: Home, events: Events) -> LogProofVerifier:
        """Return the verifier of a home, as configured."""
        config = home.config
        quorum = Quorum(config.log.witnesses, config.log.quorum)
        return cls(home.path, config.client_id, home.root, Pins(home.path), events, quorum)

    # -- connections -------------------------------------------------------------------------------

    async def welcome(self, current: ShownLog, timeout_s: float) -> None:
        """Check what a new connection shows of the log, before it is used for anything else.

        Raise LogMissing or LogContradiction if it must not be used, LogUnproven if it may be
        retried.
        """
        if not current.log_key or not current.welcome.log_head:
            raise LogMissing(
                "HQ shows no signed log, so it can prove nothing; it is older than this program or "
                "hides its actions. Nothing is sent",
                remedy="ask its admin",
            )
        if self._key and current.log_key != self._key:
            raise LogContradiction(
                f"HQ's signed log has the key {current.log_key.hex()}, and {self._key.hex()} was "
                "seen here before. Either the admin replaced it, or this is another HQ with the "
                "same CA. Ask the admin without going through HQ; if it was replaced, delete "
                f"certs/{LOG_KEY} in this client's directory"
            )
        try:
            head = verify_checkpoint(current.welcome.log_head, current.log_key)
        except EnvelopeError as error:
            raise LogMissing(
                f"HQ's newest head is invalid: {error}. Nothing is sent", remedy="tell the admin"
            ) from None
        if head.incarnation != current.welcome.history:
            raise LogMissing(
                "HQ's newest head belongs to another incarnation than HQ states. Nothing is sent",
                remedy="tell the admin",
            )
        if not self._key:
            self._pins.remember_log_key(current.log_key)
            self._key = current.log_key
        self._current = current
        connection = ConnectionRequester(current, timeout_s)
        if len(self._unproven) >= MAX_UNPROVEN:
            await self.check(connection)
        self._observe(Head(head, current.welcome.log_head))
        await self._resolve(connection, head)
        if self._unproven:
            await self.check(connection)

    async def _resolve(self, connection: Requester, newest: Checkpoint) -> None:
        """Raise LogContradiction if one is recorded that no admin's statement explains."""
        known = self.heads.contradiction()
        if known is None:
            return
        between = [head.checkpoint for head in self.heads.contradicting_heads()]
        if any(head.origin != newest.origin for head in between):
            with suppress(CipherBoxError):  # without an answer the contradiction remains
                ended = left_of(await ended_origins(connection, self._key, self._root, newest))
                if any(is_lost(head, ended) for head in between):
                    self.heads.resolve_contradiction(ended)
                    self._ended = self.heads.ended()
                    return
        raise LogContradiction(contradiction_text(*known))

    @property
    def key(self) -> bytes:
        """The log's key, as first seen."""
        return self._key

    @property
    def newest(self) -> Head | None:
        """The newest verified head."""
        return self._newest

    @property
    def all_proven(self) -> bool:
        """Whether every observed head is verified."""
        return not self._unproven

    # -- proofs ------------------------------------------------------------------------------------

    def confirm(self, frame: frames.Confirm, leaves: Sequence[bytes], *, again: bool) -> None:
        """Raise LogUnproven unless HQ proves that its log names these envelopes of this client."""
        try:
            if not frame.proof:
                raise LogUnproven("HQ sent no proof")
            proven = log.verify_proof(
                frame.proof, self._client_id, leaves, self._key, frame.accepted_at, again=again
            )
            if proven.record.index != frame.log_position:
                raise LogUnproven("HQ's proof is for a different entry")
        except (EnvelopeError, LogUnproven) as error:
            raise LogUnproven(
                f"HQ confirmed {len(leaves)} envelopes and did not prove that its signed log "
                f"names them ({error}); they stay in the outbox. Tell the admin"
            ) from None
        self._observe(Head(proven.head, proven.note))
        self._unproven.pop(proven.before, None)

    def bundles(self, bundles: Sequence[bytes], proofs: Sequence[bytes]) -> None:
        """Raise BundleUnlogged unless HQ proves that its log names each of these bundles."""
        for raw, proof in zip(bundles, [*proofs, *[b""] * len(bundles)], strict=False):
            self._observe(self.bundle_proofs.check(decode_bundle(raw), proof, self._key))

    # -- heads -------------------------------------------------------------------------------------

    def observe(self, note: bytes, shown_by: str | None = None) -> Checkpoint:
        """Observe a head of HQ's log. Raise EnvelopeError if HQ did not sign it.

        Of heads shown by one client only the newest counts: an honest client's heads are
        consistent, and another one cannot keep HQ busy with them.
        """
        head = verify_checkpoint(note, self._key)
        before = self._unproven.get(shown_by) if shown_by is not None else None
        if before is None or before.checkpoint.size < head.size:
            self._observe(Head(head, note), shown_by)
        return head

    def _observe(self, head: Head, shown_by: str | None = None) -> None:
        newest = self._newest.checkpoint if self._newest is not None else None
        point = head.checkpoint
        if is_lost(point, self._ended) or (newest is not None and point[:3] == newest[:3]):
            return
        key: object = shown_by if shown_by is not None else point[:3]
        if len(self._unproven) >= MAX_UNPROVEN and key not in self._unproven:
            error = LogUnproven(
                f"HQ has not proven that {MAX_UNPROVEN} heads of its log are consistent",
                remedy="tell the admin",
            )
            if self._current is not None:
                self._current.end(error)
            raise error
        self._unproven[key] = head
        self._work.set()

    async def run(self, connection: Requester, covered: Callable[[int], None]) -> None:
        """Request proofs that observed heads are consistent, until cancelled; call ``covered`` with
        the number of entries that a quorum of witnesses covers.

        An HQ that never answers could keep a fork hidden: after a timeout its connection ends, and
        the next one is not used before it has answered.
        """
        current, since = self._current, trio.current_time()
        while True:
            if not self._unproven:
                self._work.clear()
                with trio.move_on_after(COVER_S if self.quorum.demanded else float("inf")):
                    await self._work.wait()
                current, since = self._current, trio.current_time()
            if current is not self._current:
                current, since = self._current, trio.current_time()
            try:
                with trio.fail_after(max(0.1, since + PROOF_TIMEOUT_S - trio.current_time())):
                    await self.check(connection)
                covered(self.quorum.covered)
                since = trio.current_time()
            except LogContradiction as error:
                if self._current is not None:
                    self._current.end(error)
                return
            except (CipherBoxError, trio.TooSlowError) as error:
                self._keep_unproven()
                late = trio.current_time() >= since + PROOF_TIMEOUT_S
                if late and self._unproven and current is not None and current is self._current:
                    current.end(
                        LogUnproven(
                            f"HQ has not proven within {PROOF_TIMEOUT_S:g} s that the heads of "
                            f"its log are consistent ({str(error) or 'no answer'}). Nothing is "
                            "sent before it does",
                            remedy="tell the admin",
                        )
                    )
                await trio.sleep(RETRY_S)
            await trio.sleep(PAUSE_S)

    async def finish(self, connection: Requester) -> None:
        """Verify and record observed heads before the client closes, or a rollback now would go
        unnoticed.
        """
        # a contradiction is recorded, and was reported
        with trio.move_on_after(FINISH_S), suppress(CipherBoxError):
            if self._unproven:
                await self.check(connection)

    def close(self) -> None:
        """Record heads that HQ has not proven, for the home's next program, and close."""
        with suppress(StoreError):  # report the error that ended this program instead
            self._keep_unproven()
        self.heads.close()

    def _keep_unproven(self) -> None:
        if self._unproven:
            self.heads.keep_unproven(self._unproven.values())

    async def check(self, connection: Requester) -> Checkpoint:
        """Request HQ's newest head and proofs that it is consistent with observed heads; return the
        newest.

        Raise LogContradiction, and record it, if they are inconsistent.
        """
        for _ in range(_TRIES):
            newest = await self._round(connection)
            if newest is not None:
                return newest
        raise LogUnproven("other programs of this client are verifying HQ's log; retried later")

    async def _round(self, connection: Requester) -> Checkpoint | None:
        """Verify once. Return None if another program of this home recorded a head meanwhile, which
        must be checked too.
        """
        stored = self.heads.newest()
        met = list(self._unproven.items())
        points = sorted(
            {head for _, head in met} | ({stored} if stored is not None else set()),
            key=lambda head: (head.checkpoint.size, head.checkpoint.at),
        )
        points = [head for head in points if head.checkpoint.size]
        answer: frames.Heads | None = None
        before: list[Head] = []
        ended: dict[str, int] = {}
        while answer is None or points:
            part, points = [*before, *points[: _SIZES - 1]], points[_SIZES - 1 :]
            answer, newest = await self._check_part(connection, part, stored, ended)
            before = [newest]
        cosigned = self.quorum.read(answer.cosigned, self._key)
        if cosigned:
            _, newest = await self._check_part(
                connection, [*before, *(head for _, head in cosigned)], stored, ended
            )
        if not self.heads.advance(newest, stored, ended):
            self._observe(newest)
            return None
        for witness, head in cosigned:
            self.quorum.cover(witness, head)
        for key, head in met:
            if self._unproven.get(key) is head:
                self._unproven.pop(key)
        if met:
            self.heads.mark_proven(head for _, head in met)
        self._newest, self._ended = self.heads.newest(), self.heads.ended()
        return newest.checkpoint

    async def _check_part(
        self, connection: Requester, points: list[Head], stored: Head | None, ended: dict[str, int]
    ) -> tuple[frames.Heads, Head]:
        """Verify one part of the points. Incarnations that an admin's statement explains are added
        to ``ended``.
        """
        points = [head for head in points if not is_lost(head.checkpoint, ended)]
        sizes = sorted({head.checkpoint.size for head in points})
        answer: frames.Heads = await connection.request(frames.GetHeads, sizes=sizes)
        try:
            newest = Head(verify_checkpoint(answer.head, self._key), answer.head)
        except EnvelopeError as error:
            raise LogUnproven(f"HQ's newest head is invalid: {error}") from None
        proofs = dict(zip(sizes, map(split_hashes, answer.proofs), strict=False))
        inconsistent = first_inconsistent([*points, newest], proofs)
        if inconsistent is None:
            return answer, newest
        restores = await self._restores(connection, points, newest.checkpoint)
        lost = [head.checkpoint for head in points if is_lost(head.checkpoint, left_of(restores))]
        if not lost:
            self._contradict(*inconsistent, stored)
        for origin, one in restores.items():
            ended[origin] = min(one.size, ended.get(origin, one.size))
        self._events.emit(
            LINE,
            f"HQ was restored from a backup, as {restores[lost[0].origin].by} has signed in its "
            f"log; entries after {restores[lost[0].origin].size} of the previous log may be lost",
        )
        return await self._check_part(connection, points, stored, ended)

    async def _restores(
        self, connection: Requester, points: Sequence[Head], newest: Checkpoint
    ) -> dict[str, Ended]:
        """Return what admins have signed about previous incarnations, or nothing if HQ refuses to
        show it.
        """
        if all(head.checkpoint.origin == newest.origin for head in points):
            return {}
        try:
            return await ended_origins(connection, self._key, self._root, newest)
        except CipherBoxError as error:
            if error.retryable:
                raise
            return {}

    def _contradict(
        self, first: Head, second: Head, proof: Sequence[bytes], stored: Head | None
    ) -> NoReturn:
        """Record the contradiction, write its evidence and raise LogContradiction."""
        if stored is not None and second == stored:
            first, second = second, first
        what = words(
            compare(first.checkpoint, second.checkpoint, proof), first.checkpoint, second.checkpoint
        )
        file = self._home / f"log-evidence-{int(clock.now_s())}.json"
        current = self._current
        certificate = current.certificate if current is not None else None
        evidence = Evidence(
            first.note,
            second.note,
            tuple(proof),
            self._key,
            current.welcome.log_key if current is not None else b"",
            pki.der(certificate) if certificate is not None else b"",
            clock.now_ms(),
            self._client_id,
        )
        write_atomic(file, make_file(evidence))
        self.report_contradiction(what, str(file), (first, second))

    def report_contradiction(
        self, what: str, file: str = "", between: Sequence[Head] = ()
    ) -> NoReturn:
        """Record that HQ contradicted itself, which stops every program of this home, and raise
        LogContradiction.

        Without ``file`` and ``between`` the only evidence is HQ's statements to this client.
        """
        self.heads.keep_contradiction(what, file, between)
        error = LogContradiction(contradiction_text(*(self.heads.contradiction() or (what, file))))
        self._events.emit(LINE, str(error))
        if self._current is not None:
            self._current.end(error)
        raise error
