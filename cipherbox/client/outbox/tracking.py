"""Track a message for its sender: the outbox's state, HQ's report, and the recipients' receipts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import trio

from cipherbox.checks import checked
from cipherbox.classes import frozen
from cipherbox.client.outbox.folder_files import FolderFiles
from cipherbox.client.outbox.receipts import another_entry
from cipherbox.client.outbox.rows import CANCELLED, PARKED, WAITING, Row
from cipherbox.client.publishing.calls import PublishingCalls
from cipherbox.client.receiving.receipts import RESEALABLE
from cipherbox.client.topology import TopologyCalls
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.envelope.group import decode_group
from cipherbox.envelope.ids import message_id, split_message_id
from cipherbox.envelope.outcomes import Outcome, outcome_words
from cipherbox.envelope.receipt_file import make_file
from cipherbox.errors import CipherBoxError, NetworkError, NotFound, RecipientRefuses
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.receiving.receipts import ReceiptConsumer

DELIVERED, ACKNOWLEDGED, DEAD = 1, 2, 3  # states of a StatusReport's traces
MAILBOX = "box."
_ASK_S = 0.5  # between questions to HQ while waiting for a delivery


@frozen
class Step:
    """One event of a timeline; ``at`` is ms since 1970, 0 if unknown; ``what`` is a fixed word for
    scripts.
    """

    at: int
    what: str
    text: str
    client_id: str = ""


@frozen
class Timeline:
    """The timeline of one message.  ``open_for``: recipients that have signed nothing; ``report``:
    HQ's report, None if HQ is unreachable.
    """

    message_id: uuid.UUID
    recipients: tuple[str, ...]
    steps: tuple[Step, ...]
    open_for: tuple[str, ...]
    report: frames.StatusReport | None
    file: str = ""  # of the agent's folder


@checked
class Tracking(PublishingCalls, TopologyCalls):
    """Mixed into `Client`."""

    receipts: ReceiptConsumer

    async def sent(self, message: uuid.UUID | str) -> Row | None:
        """Return the outbox row of a message; None if it was not sent from here."""
        envelope_id, index = split_message_id(message)
        row = await self.outbox().store(self.outbox().outbox.find, envelope_id)
        return row if isinstance(row, Row) and index < row.messages else None

    async def timeline(self, message: uuid.UUID | str) -> Timeline:
        """Return the timeline of a message; raise NotFound if it was not sent from here."""
        row = await self.sent(message)
        if row is None:
            raise NotFound(
                f"message {message} was not sent from this home, or its history was dropped"
            )
        steps = [Step(row.sealed_at, "sealed", "sealed on this machine and kept in the outbox")]
        _, index = split_message_id(message)
        proof: Any = await self.outbox().store(self.outbox().outbox.proof, row.number)
        signed = await self._signed(row, index, proof)
        report = await self._asked(row)
        accepted_at = row.accepted_at or (
            report.accepted_at if report is not None and report.found else 0
        )
        if accepted_at:
            entry = f", entry {proof[0]} of its signed log" if proof is not None else ""
            steps.append(
                Step(accepted_at, "confirmed", f"confirmed by HQ: on its stable storage{entry}")
            )
        else:
            steps.append(_not_confirmed(row, self.connection.trouble))
        if report is not None and report.found:
            steps += _traces(report)
        steps += signed
        steps.sort(key=lambda step: step.at or 1 << 62)
        said = {step.client_id for step in signed}
        open_for = tuple(name for name in row.recipients if name not in said)
        shown = message_id(row.envelope_id, index)
        files: Any = await self.outbox().store(
            FolderFiles(self.outbox().outbox).of_envelope, row.envelope_id
        )
        file = next(("/".join(one.path) for one in files if one.message == index), "")
        return Timeline(shown, row.recipients, tuple(steps), open_for, report, file)

    async def _signed(
        self, row: Row, index: int, proof: tuple[int, bytes, bytes] | None
    ) -> list[Step]:
        outcomes = await self.outbox().store(self.outbox().outbox.outcomes, row.number)
        assert isinstance(outcomes, list)
        steps = []
        for recipient, whole, signed_at, receipt, leaf, messages in outcomes:
            outcome = (
                messages[index] if whole == Outcome.OPENED and index < len(messages) else whole
            )
            opened = outcome == Outcome.OPENED
            text = (
                f"opened by {recipient}"
                if opened
                else f"refused by {recipient}: {outcome_words(outcome)}"
            )
            what = "opened" if opened else "refused"
            other = await self._other_entry(receipt, leaf, proof)
            steps.append(Step(signed_at, what, f"{text} (receipt verified{other})", recipient))
        return steps

    async def _other_entry(
        self, receipt: int, at: int, proof: tuple[int, bytes, bytes] | None
    ) -> str:
        """Return a text if a receipt names another entry of HQ's log than HQ proved here, else an
        empty one.
        """
        kept: Any = await self.outbox().store(self.outbox().outbox.receipt, receipt)
        leaf = decode_group(kept[0]).leaves[at] if kept is not None else None
        if leaf is None:
            return ""
        name = log.leaf(leaf.envelope_id, leaf.generation, leaf.envelope_hash)
        other = another_entry(leaf.log_entry, name, proof)
        return (
            f"; it names entry {leaf.log_entry} of HQ's log, and HQ proved entry {other} here"
            if other
            else ""
        )

    async def _asked(self, row: Row) -> frames.StatusReport | None:
        try:
            return await self.status(message_id(row.envelope_id, 0))
        except NetworkError:
            return None

    async def wait_for(self, envelope_ids: Sequence[bytes], what: str, within_s: float) -> bool:
        """Wait until all of these were delivered to every recipient, or opened by them; return
        False on timeout.

        ``what``: delivered or opened.  Raise RecipientRefuses as soon as a recipient has signed
        that it refuses one, or that its handler gave up.
        """
        with trio.move_on_after(within_s):
            for envelope_id in envelope_ids:
                await (
                    self._opened(envelope_id) if what == "opened" else self._delivered(envelope_id)
                )
            return True
        return False

    async def _opened(self, envelope_id: bytes) -> None:
        while True:
            news = self.receipts.changed.next()
            row = await self.outbox().store(self.outbox().outbox.find, envelope_id)
            await self._check_refusals(row)
            if isinstance(row, Row) and row.owed <= 0:
                return
            # another program of this home may have consumed the receipt
            with trio.move_on_after(_ASK_S):
                await news.wait()

    async def _delivered(self, envelope_id: bytes) -> None:
        while True:
            try:
                report = await self.status(message_id(envelope_id, 0))
            except CipherBoxError as error:
                if not error.retryable:
                    raise
                report = None
            if (
                report is not None
                and report.found
                and all(t.state in (DELIVERED, ACKNOWLEDGED) for t in report.traces)
            ):
                await self.outbox().store(self.outbox().outbox.delivered, envelope_id)
                return
            await self._check_refusals(
                await self.outbox().store(self.outbox().outbox.find, envelope_id)
            )
            await trio.sleep(_ASK_S)

    async def _check_refusals(self, row: object) -> None:
        """Raise RecipientRefuses if a recipient refused it, unless it is sealed again for the
        current keys.
        """
        if not isinstance(row, Row):
            return
        found: Any = await self.outbox().store(self.outbox().outbox.refusals, row.number)
        if whys := [
            f"{name}: {outcome_words(why)}" for name, why in found.items() if why not in RESEALABLE
        ]:
            shown = message_id(row.envelope_id, 0)
            raise RecipientRefuses(
                f"message {shown} was refused by {'; '.join(whys)}",
                remedy=f"see what became of it: cipherbox status {shown}",
            )

    async def export_receipts(self, message: uuid.UUID | str) -> dict[str, bytes]:
        """Return the receipt file of each recipient that has signed for this message so far."""
        row = await self.sent(message)
        if row is None:
            raise NotFound(
                f"message {message} was not sent from this home, or its history was dropped"
            )
        _, index = split_message_id(message)
        outbox = self.outbox().outbox
        found: dict[str, bytes] = {}
        outcomes: Any = await self.outbox().store(outbox.outcomes, row.number)
        for recipient, _, _, receipt, leaf, _ in outcomes:
            kept: Any = await self.outbox().store(outbox.receipt, receipt)
            if kept is not None:
                group, bundle = kept
                exported = decode_group(group).export(leaf)
                found[recipient] = make_file(exported, index, decode_bundle(bundle), self.home.root)
        return found


def _not_confirmed(row: Row, trouble: CipherBoxError | None) -> Step:
    if row.state == WAITING:
        why = f": {trouble}" if trouble is not None else ""
        return Step(
            0, "waiting", f"waits in the outbox of this machine{why}; it is sent automatically"
        )
    if row.state == PARKED:
        return Step(row.changed_at, "aside", f"refused by HQ and set aside: {row.reason}")
    if row.state == CANCELLED:
        return Step(row.changed_at, "cancelled", "cancelled on this machine before HQ confirmed it")
    return Step(row.accepted_at, "confirmed", "confirmed by HQ")


def _traces(report: frames.StatusReport) -> list[Step]:
    steps = []
    for trace in report.traces:
        who = trace.client_id or trace.queue.removeprefix(MAILBOX).removesuffix(".bulk")
        if trace.delivered_at:
            steps.append(Step(trace.delivered_at, "delivered", f"delivered to {who}", who))
        elif trace.state == DEAD:
            pass
        else:
            steps.append(Step(0, "queued", f"waits at HQ for {who}", who))
        if trace.acknowledged_at:
            steps.append(Step(trace.acknowledged_at, "acknowledged", f"acknowledged by {who}", who))
        if trace.state == DEAD:
            steps.append(Step(0, "dead", f"dead letter of {trace.queue}: {trace.reason}", who))
    return steps
