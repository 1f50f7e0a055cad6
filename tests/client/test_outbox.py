"""The outbox over a real HQ: what is sealed survives everything, goes out once, and says what
became of it.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import trio

from cipherbox.client import local_database
from cipherbox.client.local_database import open_database
from cipherbox.client.outbox.outbox import DATABASE, FILES, OLDEST, STEPS, Outbox
from cipherbox.client.outbox.rows import (
    CONFIRMED,
    COPIES,
    PARKED,
    WAITING,
    Confirmed,
    OutboxEntry,
    Proven,
    Refused,
    Signed,
)
from cipherbox.client.outbox.transfers import SENT, Transfers
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.receipt_file import verify_file
from cipherbox.envelope.transparency_log import leaf
from cipherbox.errors import (
    CipherBoxError,
    Damaged,
    Queued,
    SchemaTooNew,
    SchemaTooOld,
    SignatureInvalid,
    UnknownRecipient,
)
from tests.client.waiting import until
from tests.parties import now_ms


def fresh(number: int, *, generation: int = 0, size: int = 100, **more: Any) -> OutboxEntry:
    name = number.to_bytes(2, "big")
    values: dict[str, Any] = {
        "raw": (name * size)[:size],
        "envelope_id": name * 7 + b"\0\0",
        "generation": generation,
        "count": 1,
        "exchange": "",
        "routing_key": "",
        "recipients": ("CA-RC", "SF-RC"),
        "flags": 0,
        "route_version": 0,
        "sealed_at": 1,
        "envelope_hash": (name + bytes([generation, 0])) * 8,
        "content_key": b"k" * 72,
    }
    return OutboxEntry(**{**values, **more})


def signed(item: OutboxEntry, recipient: str, outcome: int = 0) -> Signed:
    return Signed(item.envelope_id, item.generation, recipient, outcome, 5, 0, item.envelope_hash)


def sign(outbox: Outbox, digest: int, *outcomes: Signed) -> list[Signed]:
    return outbox.sign(
        b"bundle", b"b" * 32, outcomes[0].recipient, b"group", bytes([digest]) * 32, outcomes
    )


@pytest.mark.parametrize("size", [100, 100_000], ids=["row", "file"])
def test_bytes_stay_until_all_have_signed(tmp_path: Path, size: int) -> None:
    outbox = Outbox(tmp_path)
    item = fresh(1, size=size)
    outbox.write([item])
    (row,) = outbox.rows([WAITING])
    assert (outbox.bytes_of(row), row.owed, row.size) == (item.raw, 2, size)
    outbox.write(confirmed=[Confirmed(item.envelope_id, 0, 7, ("box.CA-RC",))])
    assert len(sign(outbox, 1, signed(item, "CA-RC"))) == 1
    assert sign(outbox, 1, signed(item, "CA-RC")) == []  # the same receipt again
    assert sign(outbox, 2, signed(item, "CA-RC", outcome=4)) == []  # what was opened stays opened
    assert sign(outbox, 3, signed(item, "NY-RC")) == []  # no recipient
    # of other bytes
    assert sign(outbox, 4, signed(item._replace(envelope_hash=bytes(32)), "SF-RC")) == []
    (row,) = outbox.rows([CONFIRMED])
    assert (row.owed, outbox.bytes_of(row)) == (1, item.raw)
    assert len(sign(outbox, 5, signed(item, "SF-RC"))) == 1
    (row,) = outbox.rows([CONFIRMED])
    assert (row.owed, outbox.bytes_of(row), row.content_key) == (0, None, None)
    assert [o[:2] for o in outbox.outcomes(row.number)] == [("CA-RC", 0), ("SF-RC", 0)]
    assert outbox.forget(1 << 60) == 1
    outbox.close()
    assert list((tmp_path / FILES).iterdir()) == []


def test_kept_only_until_confirmed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "confirmed")
    outbox.write([fresh(1), fresh(2, size=100_000)])
    outbox.write(confirmed=[Confirmed(fresh(n).envelope_id, 0, 7, ()) for n in (1, 2)])
    assert all(outbox.bytes_of(row) is None for row in outbox.rows([CONFIRMED]))
    outbox.close()
    assert list((tmp_path / FILES).iterdir()) == []


def test_news_about_an_earlier_generation_changes_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    first, second = fresh(1), fresh(1, generation=1, size=100_000)
    outbox.write([first])
    sign(outbox, 1, signed(first, "CA-RC"))
    outbox.write([second])
    outbox.write(refused=[Refused(first.envelope_id, 0, 1, "of the one before")])
    outbox.write(confirmed=[Confirmed(first.envelope_id, 0, 7, ())])
    (row,) = outbox.rows([WAITING])
    # CA-RC has opened it already
    assert (row.generation, row.owed, outbox.bytes_of(row)) == (1, 1, second.raw)
    assert len(sign(outbox, 2, signed(second, "SF-RC"))) == 1
    outbox.close()


def test_of_a_replaced_envelope_nothing_is_left(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.write([fresh(1, size=100_000)])
    outbox.write([fresh(2, replaces=fresh(1).envelope_id)])
    assert [row.envelope_id for row in outbox.rows([WAITING])] == [fresh(2).envelope_id]
    outbox.close()
    assert list((tmp_path / FILES).iterdir()) == []


def counts(outbox: Outbox, *tables: str) -> list[int]:
    db, _ = outbox.database
    return [db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]


def proven(*items: OutboxEntry) -> Proven:
    leaves = [leaf(item.envelope_id, item.generation, item.envelope_hash) for item in items]
    return Proven(7, b"proof", b"".join(leaves), tuple(item.envelope_id for item in items))


def test_a_dropped_envelope_takes_everything_with_it_and_its_number_inherits_nothing(
    tmp_path: Path,
) -> None:
    """SQLite gives the number of a deleted newest row to the next one."""
    outbox = Outbox(tmp_path)
    other, first, second = fresh(1), fresh(2), fresh(2, generation=1)
    outbox.write([other, first])
    outbox.write([second], proven=[proven(other, second)])
    sign(outbox, 1, signed(second, "CA-RC"))
    sign(outbox, 3, signed(second, "SF-RC"))
    tables = ("generations", "outcomes", "receipts", "proofs")
    assert counts(outbox, *tables) == [1, 2, 2, 1]
    outbox.drop([second.envelope_id])
    assert counts(outbox, *tables) == [0, 0, 0, 1]  # another envelope has the proof
    outbox.write([fresh(3)])
    assert [row.number for row in outbox.rows([WAITING])] == [1, 2]
    assert len(sign(outbox, 2, signed(fresh(3), "CA-RC"))) == 1
    assert outbox.find(fresh(3).envelope_id).owed == 1  # type: ignore[union-attr]
    outbox.drop([fresh(3).envelope_id, other.envelope_id])
    assert counts(outbox, *tables) == [0, 0, 0, 0]
    outbox.close()


def test_a_proof_of_what_was_dropped_is_not_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.write([fresh(1)])
    outbox.drop([fresh(1).envelope_id])
    outbox.write(proven=[proven(fresh(1))])
    assert counts(outbox, "proofs") == [0]
    outbox.close()


def test_a_receipt_that_is_signed_twice_can_still_be_exported(tmp_path: Path) -> None:
    """As after a crash before the recipient noted that HQ had the first one."""
    outbox = Outbox(tmp_path)
    outbox.write([fresh(1)])
    gave_up = signed(fresh(1), "CA-RC")._replace(messages=bytes([4]))
    assert len(sign(outbox, 1, gave_up)) == 1
    assert sign(outbox, 2, gave_up._replace(signed_at=6)) == []
    (row,) = outbox.rows([WAITING])
    ((*_, receipt, _, _),) = outbox.outcomes(row.number)
    assert outbox.receipt(receipt) is not None
    # what its handler took after all replaces it, and nothing is left of the one before
    assert len(sign(outbox, 3, gave_up._replace(signed_at=7, messages=b""))) == 1
    assert counts(outbox, "receipts", "outcomes") == [1, 1]
    outbox.close()


@pytest.mark.parametrize("keep_until", ["opened", "delivered"])
def test_a_receipt_for_many_says_the_same_as_one_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_until: str
) -> None:
    """In one receipt, an envelope may occur more than once, with outcomes of any order."""
    monkeypatch.setattr(local_database, "SYNCHRONOUS", "OFF")
    random = Random(7)
    to = [("CA-RC", "SF-RC"), ("CA-RC",), ("SF-RC",)]
    sizes = [100_000 if n % 100 == 1 else 100 for n in range(602)]
    batch = [fresh(n, size=sizes[n], recipients=to[n % 3]) for n in range(1, 602)]
    later = [fresh(n, generation=1, recipients=to[n % 3]) for n in range(1, 602, 4)]
    outcomes = [
        signed(item, "CA-RC", outcome)._replace(
            signed_at=random.randrange(9),
            messages=random.choice((b"", bytes([4, 0]), bytes([0, 4]))),
            leaf=leaf,
            log_entry=random.randrange(3),
        )
        for leaf, (item, outcome) in enumerate(
            (random.choice((*batch, *later, fresh(700))), random.choice((0, 0, 4)))
            for _ in range(1500)
        )
    ]
    results = []
    for each in (False, True):
        outbox = Outbox(tmp_path / str(each), keep_until)
        outbox.write(batch, proven=[proven(*batch)])
        outbox.write(later)
        db, _ = outbox.database
        news: list[Signed] = []
        parts = [[one] for one in outcomes] if each else [outcomes]
        for digest, part in enumerate(parts):
            news += outbox.sign(b"b", b"b" * 32, "CA-RC", b"g", digest.to_bytes(32, "big"), part)
        kept = db.execute(
            "SELECT envelope_id, owed, data IS NULL, content_key IS NULL, file IS NULL FROM "
            "envelopes ORDER BY number"
        ).fetchall()
        columns = "number, recipient, generation, outcome, signed_at, leaf, messages"
        said = db.execute(f"SELECT {columns} FROM outcomes ORDER BY number").fetchall()
        unused = "SELECT count(*) FROM receipts WHERE receipt NOT IN (SELECT receipt FROM outcomes)"
        assert db.execute(unused).fetchone() == (0,)
        results.append((news, kept, said, len(list((tmp_path / str(each) / FILES).iterdir()))))
        outbox.close()
    assert results[0] == results[1]
    assert any(one.proven_entry for one in results[0][0])


def test_a_receipt_for_many_takes_few_statements_for_each(tmp_path: Path) -> None:
    batch = [fresh(n) for n in range(1, 301)]
    outbox = Outbox(tmp_path)
    db, _ = outbox.database
    statements: list[str] = []
    outbox.write(batch)
    db.set_trace_callback(statements.append)
    confirmed = [Confirmed(item.envelope_id, 0, 7, ("box.CA-RC",)) for item in batch]
    outbox.write(confirmed=confirmed, proven=[proven(*batch)])
    assert len(statements) < len(batch) + 20
    statements.clear()
    assert len(sign(outbox, 1, *(signed(item, "CA-RC") for item in batch))) == len(batch)
    assert len(statements) < 2 * len(batch) + 20
    db.set_trace_callback(None)
    outbox.close()


def test_copies_that_nobody_needs_go_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: now_ms())
    outbox = Outbox(tmp_path)
    (tmp_path / "file").write_bytes(b"content")
    transfers = Transfers(outbox)
    kinds = ("under way", "owed", "opened", "cancelled")
    made = {
        kind: transfers.begin(tmp_path / "file", ["f"], ["CA-RC"], "", compress=False, copy=True)
        for kind in kinds
    }
    for number, kind in enumerate(kinds[1:], 1):
        item = fresh(number, recipients=("CA-RC",), routing_key=".bulk")
        outbox.write([item])
        transfers.finish(made[kind], SENT, manifest=item.envelope_id)
        if kind == "opened":
            db, _ = outbox.database
            db.execute("UPDATE envelopes SET owed = 0 WHERE envelope_id = ?", (item.envelope_id,))
        if kind == "cancelled":
            outbox.drop([item.envelope_id])
    outbox.close()
    stray = tmp_path / FILES / COPIES / "stray"
    stray.write_bytes(b"of a crash")
    Outbox(tmp_path).close()
    assert stray.exists()
    for path in stray.parent.iterdir():
        os.utime(path, (1, 1))
    Outbox(tmp_path).close()
    kept = {kind for kind, transfer in made.items() if Path(transfer.file).exists()}
    assert (kept, stray.exists()) == ({"under way", "owed"}, False)


def test_a_write_that_fails_keeps_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.write([fresh(1)])
    with pytest.raises(TypeError):
        outbox.write([fresh(2, size=100_000), fresh(3, recipients=None)])
    assert len(outbox.rows([WAITING])) == 1
    assert list((tmp_path / FILES).iterdir()) == []
    outbox.close()


def test_files_that_no_row_names_go_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: now_ms())
    Outbox(tmp_path).close()
    old, young = tmp_path / FILES / "old", tmp_path / FILES / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    Outbox(tmp_path).close()
    assert not old.exists()
    assert young.exists()


def test_damaged_and_newer_databases_are_named(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    db = sqlite3.connect(tmp_path / DATABASE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNew, match=r"outbox\.sqlite3"):
        Outbox(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"no database at all" * 100)
    with pytest.raises(Damaged, match=r"outbox\.sqlite3 is damaged"):
        Outbox(tmp_path)


def test_a_database_of_before_0_5_0_is_refused_and_left_alone(tmp_path: Path) -> None:
    open_database(tmp_path / DATABASE, STEPS[: OLDEST - 1]).close()
    with pytest.raises(SchemaTooOld, match=r"before 0\.5\.0"):
        Outbox(tmp_path)
    open_database(tmp_path / DATABASE, STEPS[:OLDEST]).close()
    Outbox(tmp_path).close()


async def test_what_was_sealed_while_hq_was_away_goes_out_with_the_next_client(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("known", to="CA-RC")
    await hq.stop()
    ids = []
    async with hq.client(
        "FL-LAB", keep_trying=True, tries=2, timeout_s=1.0, pause_max_s=0.1
    ) as lab:
        for text in ("one", "two"):
            with pytest.raises(Queued, match="kept in the outbox") as caught:
                await lab.publish(text, to="CA-RC")
            ids += caught.value.message_ids
        timeline = await lab.timeline(ids[0])
        assert [step.what for step in timeline.steps] == ["sealed", "waiting"]
    await hq.start()
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        receiver = Receiver(center)
        with trio.fail_after(60):
            assert await receiver.run(count=3) == 3
        assert [line["content"] for line in hq.lines("CA-RC")] == ["known", "one", "two"]
        assert [line["message_id"] for line in hq.lines("CA-RC")][1:] == ids
        with trio.fail_after(60):
            while (row := await lab.sent(ids[1])) is None or row.owed:
                await trio.sleep(0.01)


async def test_receipts_are_verified_kept_and_exported(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish(["a", "b"], to="CA-RC")
        second = confirmation.message_ids[1]
        assert (await lab.timeline(second)).open_for == ("CA-RC",)
        with trio.fail_after(60):
            await Receiver(center).run(count=2)
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
            assert await lab.wait_for([confirmation.envelope_id], "delivered", 60)
        timeline = await lab.timeline(second)
        assert timeline.open_for == ()
        assert "opened" in [step.what for step in timeline.steps]
        (data,) = (await lab.export_receipts(second)).values()
    statement = verify_file(data)
    assert (statement.message_id, statement.recipient, statement.outcome) == (
        str(second),
        "CA-RC",
        "opened",
    )
    with pytest.raises(SignatureInvalid, match="recipient"):
        verify_file(data.replace(b'"recipient": "CA-RC"', b'"recipient": "SF-RC"'))
    for at in range(0, len(data), 97):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            found = verify_file(changed)
            # Another root is what whoever verifies compares; nothing else may differ.
            assert attrs.evolve(found, root_sha256=statement.root_sha256) == statement
        except CipherBoxError:
            pass


async def test_a_refusal_is_kept_aside_with_its_reason_and_can_be_retried(
    hq: Any, monkeypatch: Any
) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
    async with hq.admin() as admin:
        await admin.revoke("CA-RC")
    async with hq.client("FL-LAB") as lab:
        # The revocation list that this client has is from before.
        monkeypatch.setattr(lab.revocations, "revoked_at", lambda serial: 0)
        monkeypatch.setattr(lab.directory, "_renew", _nothing)
        with pytest.raises(CipherBoxError, match="revoked"):
            await lab.publish("too late", to="CA-RC")
        await until(lambda: bool(lab.outbox_sender.outbox.rows([PARKED])))
        (row,) = lab.outbox_sender.outbox.rows([PARKED])
        assert "revoked" in row.reason
        assert await lab.outbox_sender.store(lab.outbox_sender.outbox.again, row.envelope_id)
        lab.outbox_sender.look()
        await until(lambda: bool(lab.outbox_sender.outbox.rows([PARKED])))


async def _nothing(names: Any) -> None:
    await trio.lowlevel.checkpoint()


async def test_an_unknown_recipient_leaves_nothing_in_the_outbox(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        with pytest.raises(UnknownRecipient):
            await lab.publish("x", to="XX-RC")
        assert lab.outbox_sender.outbox.counts() == {}


async def test_a_message_sealed_again_is_delivered_once(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish("once", to="CA-RC")
        assert await lab.outbox_sender.seal_again(confirmation.envelope_id)
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1
            while (row := await lab.sent(confirmation.message_ids[0])) is None or row.owed:
                await trio.sleep(0.01)
            assert row.generation == 1
            assert await Receiver(center).run(idle_s=0.3) == 0
        assert not await lab.outbox_sender.seal_again(
            confirmation.envelope_id
        )  # its bytes are gone
    assert [line["content"] for line in hq.lines("CA-RC")] == ["once"]


async def test_a_lost_key_is_answered_by_the_next_generation(hq: Any, monkeypatch: Any) -> None:
    """The recipient says it has no such key; the sender seals again, and this time it is opened."""
    from cipherbox.errors import KeyMissing

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("for the new key", to="CA-RC")
        real = center.opener.open
        refused: list[int] = []

        async def no_key_at_first(delivery: Any, **how: Any) -> None:
            if delivery.parsed.layout.prefix.generation == 0:
                refused.append(1)
                raise KeyMissing("the envelope was sealed to a key which is not here")
            await real(delivery, **how)

        monkeypatch.setattr(center.opener, "open", no_key_at_first)
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1
        assert refused
    assert [line["content"] for line in hq.lines("CA-RC")] == ["for the new key"]


async def test_what_all_have_opened_waits_for_nothing(hq: Any) -> None:
    """The process that sent it was killed before HQ's word was written: the receipts say it too."""
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        done = await lab.publish("x", to="CA-RC")
        await Receiver(center).run(count=1)
        assert await lab.wait_for([done.envelope_id], "opened", 60)
    db = sqlite3.connect(hq.home("FL-LAB") / DATABASE, isolation_level=None)
    db.execute("UPDATE envelopes SET state = 0, accepted_at = 0, changed_at = 0")
    db.close()
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(60):
            while (await lab.outbox_sender.store(lab.outbox_sender.outbox.counts)) != {
                CONFIRMED: 1
            }:
                await trio.sleep(0.05)
