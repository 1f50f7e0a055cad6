"""Checks HQ's signed log from a client's side: `LogProofVerifier`.

Rules.
1. WELCOME shows the log's key and its newest head; without them nothing is done with this HQ.
2. Every CONFIRM and every key bundle comes with a proof that the log names it.  A confirm whose
   proof does not hold counts as none: the envelope stays in the outbox, and the connection ends
   with the reason.
3. Every head that is met (in a WELCOME, a proof, a receipt, a cosignature) must go together with
   the newest one that any program of this home has verified; HQ is asked for the proofs, for many
   heads at once, and at most a few times a second.  The newest verified head is durable, and
   travels in this client's receipts.
4. Heads that do not go together are a contradiction.  It stops every program of this home until a
   person has looked, and leaves one file of evidence.  One thing explains it: an admin's signed
   word, in the log itself, that HQ was restored from a backup (`client.log.restored`).

It does not say that a key is its owner's: pins, succession and people's comparison do.
"""

from __future__ import annotations

import time
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
from cipherbox.client.log.heads import Head, Heads, first_wrong, is_gone, stopped
from cipherbox.client.log.ports import Asks, Over, ShownLog
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

_SIZES = 256  # heads HQ is asked about at once
MOST_MET = 16_384  # heads that wait for HQ's proof, some 16 MB
COVER_S = 1.0  # between looks for cosignatures, when they are demanded
PAUSE_S = 0.5  # between rounds of questions
RETRY_S = 5.0
REST_S = 2.0
PATIENCE_S = 60.0  # with an HQ that does not prove that its heads go together
_TRIES = 5  # while other programs of this home verify heads, too


class LogProofVerifier:
    """See the module.  ``home`` and ``root`` are this client's; ``quorum``: of witnesses, if it
    demands one.
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
        self._met: dict[object, Head] = {}  # what HQ still has to prove
        for head in self.heads.met():
            self._meet(head)
        self.bundle_proofs = BundleProofs()
        self._current: ShownLog | None = None
        self._contradiction: str | None = None

    @classmethod
    def of(cls, home: Home, events: Events) -> LogProofVerifier:
        """The verifier of a home, as its configuration says."""
        config = home.config
        quorum = Quorum(config.log.witnesses, config.log.quorum)
        return cls(home.path, config.client_id, home.root, Pins(home.path), events, quorum)

    # -- connections -------------------------------------------------------------------------------

    async def welcome(self, current: ShownLog, timeout_s: float) -> None:
        """A connection was made: checks what it shows of the log before anything else goes over it.

        LogMissing or LogContradiction: nothing does.  LogUnproven: not now.
        """
        if not current.log_key or not current.welcome.log_head:
            raise LogMissing(
                "HQ shows no signed log, so nothing it says can be proven; it is older "
                "than this program, or it hides what it does. Nothing is sent",
                remedy="ask its admin",
            )
        if self._key and current.log_key != self._key:
            raise LogContradiction(
                f"HQ's signed log has the key {current.log_key.hex()}, and {self._key.hex()} was "
                "seen here before. Either the admin replaced it, or this is another HQ with the "
                "same CA. Ask the admin by a way HQ has no part in; if it was replaced, delete "
                f"certs/{LOG_KEY} in this client's directory"
            )
        try:
            head = verify_checkpoint(current.welcome.log_head, current.log_key)
        except EnvelopeError as error:
            raise LogMissing(
                f"HQ's newest head does not hold: {error}. Nothing is sent", remedy="tell the admin"
            ) from None
        if head.incarnation != current.welcome.history:
            raise LogMissing(
                "HQ's newest head is of another incarnation than it says. Nothing is sent",
                remedy="tell the admin",
            )
        if not self._key:
            self._pins.remember_log_key(current.log_key)
            self._key = current.log_key
        self._current = current
        connection = Over(current, timeout_s)
        if len(self._met) >= MOST_MET:
            await self.check(connection)
        self._meet(Head(head, current.welcome.log_head))
        await self._resolve(connection, head)
        if self._met:
            await self.check(connection)

    async def _resolve(self, connection: Asks, newest: Checkpoint) -> None:
        """LogContradiction while one is remembered that no admin's word explains."""
        known = self.heads.contradiction()
        if known is None:
            return
        between = [head.checkpoint for head in self.heads.between()]
        if any(head.origin != newest.origin for head in between):
            with suppress(CipherBoxError):  # who does not answer explains nothing
                ended = left_of(await ended_origins(connection, self._key, self._root, newest))
                if any(is_gone(head, ended) for head in between):
                    self.heads.explained(ended)
                    self._ended = self.heads.ended()
                    return
        raise LogContradiction(stopped(*known))

    @property
    def key(self) -> bytes:
        """The log's key, as it was first seen."""
        return self._key

    @property
    def newest(self) -> Head | None:
        """The newest head that was verified."""
        return self._newest

    @property
    def settled(self) -> bool:
        """Whether every head that was met is verified."""
        return not self._met

    # -- proofs ------------------------------------------------------------------------------------

    def confirm(self, frame: frames.Confirm, leaves: Sequence[bytes], *, again: bool) -> None:
        """LogUnproven unless HQ proves that its log names these envelopes of this client."""
        try:
            if not frame.proof:
                raise LogUnproven("HQ gave no proof")
            proven = log.verify_proof(
                frame.proof, self._client_id, leaves, self._key, frame.accepted_at, again=again
            )
            if proven.record.index != frame.log_position:
                raise LogUnproven("HQ's proof is for another entry than it names")
        except (EnvelopeError, LogUnproven) as error:
            raise LogUnproven(
                f"HQ confirmed {len(leaves)} envelopes and did not prove that its signed log "
                f"names them ({error}); they stay in the outbox. Tell the admin"
            ) from None
        self._meet(Head(proven.head, log.proof_checkpoint(frame.proof)))

    def bundles(self, bundles: Sequence[bytes], proofs: Sequence[bytes]) -> None:
        """Raise BundleUnlogged unless HQ proves for each of these that its log names it."""
        for raw, proof in zip(bundles, [*proofs, *[b""] * len(bundles)], strict=False):
            self._meet(self.bundle_proofs.check(decode_bundle(raw), proof, self._key))

    # -- heads -------------------------------------------------------------------------------------

    def meet(self, note: bytes, shown_by: str | None = None) -> Checkpoint:
        """Somebody showed a head of HQ's log.  EnvelopeError if HQ did not sign it.

        Of one client the newest counts: an honest one's heads go together, and another does not
        keep HQ busy with them.
        """
        head = verify_checkpoint(note, self._key)
        before = self._met.get(shown_by) if shown_by is not None else None
        if before is None or before.checkpoint.size < head.size:
            self._meet(Head(head, note), shown_by)
        return head

    def _meet(self, head: Head, shown_by: str | None = None) -> None:
        newest = self._newest.checkpoint if self._newest is not None else None
        point = head.checkpoint
        if is_gone(point, self._ended) or (newest is not None and point[:3] == newest[:3]):
            return
        key: object = shown_by if shown_by is not None else point[:3]
        if len(self._met) >= MOST_MET and key not in self._met:
            error = LogUnproven(
                f"HQ owes the proof that {MOST_MET} heads of its log go together",
                remedy="tell the admin",
            )
            if self._current is not None:
                self._current.end(error)
            raise error
        self._met[key] = head
        self._work.set()

    async def run(self, connection: Asks, covered: Callable[[int], None]) -> None:
        """Asks for the proofs that what was met goes together, until cancelled; ``covered`` is told
        how many entries enough witnesses stand behind.

        An HQ that never answers would keep a fork hidden: after a while its connection ends, and
        the next one is not used before it has answered.
        """
        current, since = self._current, trio.current_time()
        while True:
            if not self._met:
                self._work.clear()
                with trio.move_on_after(COVER_S if self.quorum.demanded else float("inf")):
                    await self._work.wait()
                current, since = self._current, trio.current_time()
            if current is not self._current:
                current, since = self._current, trio.current_time()
            try:
                with trio.fail_after(max(0.1, since + PATIENCE_S - trio.current_time())):
                    await self.check(connection)
                covered(self.quorum.covered)
                since = trio.current_time()
            except LogContradiction as error:
                if self._current is not None:
                    self._current.end(error)
                return
            except (CipherBoxError, trio.TooSlowError) as error:
                self._keep_met()
                late = trio.current_time() >= since + PATIENCE_S
                if late and self._met and current is not None and current is self._current:
                    current.end(
                        LogUnproven(
                            f"HQ has not proven for {PATIENCE_S:g} s that the heads of its log "
                            f"that were met here go together ({str(error) or 'no answer'}). "
                            "Nothing is sent before it does",
                            remedy="tell the admin",
                        )
                    )
                await trio.sleep(RETRY_S)
            await trio.sleep(PAUSE_S)

    async def rest(self, connection: Asks) -> None:
        """Before the client closes: what was met is verified and remembered, or a rollback now
        would go unnoticed.
        """
        # a contradiction is remembered, and was said
        with trio.move_on_after(REST_S), suppress(CipherBoxError):
            if self._met:
                await self.check(connection)

    def close(self) -> None:
        """What HQ has not proven is for the next program of this home."""
        with suppress(StoreError):  # whatever ended this program is the error to tell
            self._keep_met()
        self.heads.close()

    def _keep_met(self) -> None:
        if self._met:
            self.heads.keep_met(self._met.values())

    async def check(self, connection: Asks) -> Checkpoint:
        """Asks HQ for its newest head and for proofs that it goes on from what was met.

        Returns HQ's newest head.  LogContradiction when it does not, and it is remembered.
        """
        for _ in range(_TRIES):
            newest = await self._round(connection)
            if newest is not None:
                return newest
        raise LogUnproven(
            "other programs of this client verify HQ's log at this moment; it is verified again "
            "later"
        )

    async def _round(self, connection: Asks) -> Checkpoint | None:
        """None if another program of this home was faster: then its head has to be looked at,
        too.
        """
        stored = self.heads.newest()
        met = list(self._met.items())
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
            self._meet(newest)
            return None
        for witness, head in cosigned:
            self.quorum.cover(witness, head)
        for key, head in met:
            if self._met.get(key) is head:
                self._met.pop(key)
        if met:
            self.heads.settle(head for _, head in met)
        self._newest, self._ended = self.heads.newest(), self.heads.ended()
        return newest.checkpoint

    async def _check_part(
        self, connection: Asks, points: list[Head], stored: Head | None, ended: dict[str, int]
    ) -> tuple[frames.Heads, Head]:
        """``ended``: what an admin's word explains is added."""
        points = [head for head in points if not is_gone(head.checkpoint, ended)]
        sizes = sorted({head.checkpoint.size for head in points})
        answer: frames.Heads = await connection.request(frames.GetHeads, sizes=sizes)
        try:
            newest = Head(verify_checkpoint(answer.head, self._key), answer.head)
        except EnvelopeError as error:
            raise LogUnproven(f"HQ's newest head does not hold: {error}") from None
        proofs = dict(zip(sizes, map(split_hashes, answer.proofs), strict=False))
        wrong = first_wrong([*points, newest], proofs)
        if wrong is None:
            return answer, newest
        words = await self._words(connection, points, newest.checkpoint)
        gone = [head.checkpoint for head in points if is_gone(head.checkpoint, left_of(words))]
        if not gone:
            self._contradict(*wrong, stored)
        for origin, one in words.items():
            ended[origin] = min(one.size, ended.get(origin, one.size))
        self._events.emit(
            LINE,
            f"HQ was restored from a backup, as {words[gone[0].origin].by} has signed in its log; "
            f"entries after {words[gone[0].origin].size} of the log before may be lost",
        )
        return await self._check_part(connection, points, stored, ended)

    async def _words(
        self, connection: Asks, points: Sequence[Head], newest: Checkpoint
    ) -> dict[str, Ended]:
        """What admins say of incarnations before this one; nothing when HQ refuses to show it."""
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
        """Remembers the contradiction and writes its evidence; raises LogContradiction."""
        if stored is not None and second == stored:
            first, second = second, first
        what = words(
            compare(first.checkpoint, second.checkpoint, proof), first.checkpoint, second.checkpoint
        )
        file = self._home / f"log-evidence-{int(time.time())}.json"
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
        self.contradicted(what, str(file), (first, second))

    def contradicted(self, what: str, file: str = "", between: Sequence[Head] = ()) -> NoReturn:
        """Remembers that HQ contradicted itself, so that every program of this home stops; raises
        LogContradiction.

        Without ``file`` and ``between``: HQ's own two words to this client are all there is.
        """
        self.heads.contradict(what, file, between)
        error = LogContradiction(stopped(*(self.heads.contradiction() or (what, file))))
        self._events.emit(LINE, str(error))
        if self._current is not None:
            self._current.end(error)
        raise error
