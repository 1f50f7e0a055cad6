"""What a client does with HQ's log: proofs of confirms, heads that must go together,
contradictions, witnesses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.client.home import load_home
from cipherbox.client.log.audit import verify_log
from cipherbox.client.log.heads import Head, Heads, first_inconsistent
from cipherbox.client.log.restores import attest_restored
from cipherbox.client.log.witness import Witness, load_key, verifier_key
from cipherbox.envelope import evidence
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as format
from cipherbox.envelope.checkpoint import Checkpoint, Note, decode_note, origin_of, sign_checkpoint
from cipherbox.errors import (
    ConfigError,
    InvalidRequest,
    LogContradiction,
    LogMissing,
    LogUnproven,
    Queued,
)
from cipherbox.server import hq as server
from cipherbox.server.log_mark import FILE as MARK_FILE
from cipherbox.server.operations.backup import back_up, restore
from cipherbox.server.requests import log as requests
from cipherbox.server.transparency_log import Proofs, TransparencyLog
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import frames
from tests.client.waiting import until

QUICK = {"tries": 1, "timeout_s": 2.0}


async def publish(client: Any, text: str = "x", **more: Any) -> Any:
    return await client.publish(text, to="CA-RC", **more)


# -- confirms --------------------------------------------------------------------------------------


async def test_a_confirm_without_a_proof_leaves_the_envelope_in_the_outbox(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
    honest = TransparencyLog.entry

    def unproven(self: TransparencyLog, *args: Any) -> Any:
        row, proofs = honest(self, *args)
        return row, Proofs(
            {n: [b""] * len(found) for n, found in proofs.confirms.items()}, proofs.notes
        )

    with monkeypatch.context() as patch:
        patch.setattr(TransparencyLog, "entry", unproven)
        async with hq.client("FL-LAB", **QUICK) as lab:
            with pytest.raises(Queued, match="did not prove that its signed log names them"):
                await publish(lab)
            assert lab.outbox_sender.outbox.counts()[0] == 1
    # HQ has it already, and proves that when it confirms it again
    async with hq.client("FL-LAB") as lab:
        await until(lambda: not lab.outbox_sender.outbox.waiting(0, 1 << 60, 1))


async def test_a_confirm_of_another_envelope_is_none(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = TransparencyLog.entry

    def other(self: TransparencyLog, effects: Any, now: int) -> Any:
        changed = {
            n: [i._replace(envelope_hash=bytes(32)) for i in items]
            for n, items in effects.confirmed.items()
        }
        return honest(self, attrs.evolve(effects, confirmed=changed), now)

    monkeypatch.setattr(TransparencyLog, "entry", other)
    async with hq.client("FL-LAB", **QUICK) as lab:
        with pytest.raises(Queued, match="HQ's proof is for something else"):
            await publish(lab)


async def test_what_was_confirmed_before_is_proven_again(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        confirmation = await publish(lab)
        assert lab.outbox_sender.outbox.again(confirmation.envelope_id)
        lab.outbox_sender.look()
        await until(lambda: not lab.outbox_sender.outbox.waiting(0, 1 << 60, 1))
        row = lab.outbox_sender.outbox.find(confirmation.envelope_id)
        entry, proof, leaves = lab.outbox_sender.outbox.proof(row.number)
        assert entry > confirmation.accepted_at * 0
        assert proof
        assert len(leaves) == 52


@pytest.mark.parametrize("missing", ["key", "head"])
async def test_an_hq_without_a_log_is_refused_by_a_client_that_never_saw_one(
    hq: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(
        *((server, "certified") if missing == "key" else (TransparencyLog, "head")), lambda *_: b""
    )
    await hq.restart()
    with pytest.raises(LogMissing, match="HQ shows no signed log"):
        async with hq.client("FL-LAB", **QUICK):
            pass


# -- heads -----------------------------------------------------------------------------------------


async def test_a_short_command_remembers_the_head_of_its_confirm(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        confirmation = await publish(lab)
        row = lab.outbox_sender.outbox.find(confirmation.envelope_id)
    async with hq.client("FL-LAB") as lab:
        entry = lab.outbox_sender.outbox.proof(row.number)[0]
        assert lab.log.newest.checkpoint.size >= entry > 0
    heads = Heads(hq.home("FL-LAB"))
    assert heads.newest().checkpoint.size >= entry  # type: ignore[union-attr]
    heads.close()


async def test_the_newest_head_is_kept_and_travels_in_receipts(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        size = lab.log.newest.checkpoint.size
    async with hq.client("FL-LAB") as lab:
        assert lab.log.newest.checkpoint.size >= size
        assert lab.log.heads.contradiction() is None


def wipe(hq: Any, work: Callable[[Any], None]) -> None:
    """Changes HQ's store behind its back, as its operator could."""
    store = open_store(hq.directory)
    try:
        work(store.db)
    finally:
        store.close()


async def test_an_hq_that_forgets_its_log_is_found_out_by_everybody(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin:
        await publish(lab)
        found = await verify_log(admin, admin.log.key, lambda *_: None)
        assert (found.wrong, found.remembered) == ([], 0)
        last = found.last
    await hq.stop()
    wipe(hq, lambda db: db.execute("DELETE FROM log"))
    (hq.directory / MARK_FILE).unlink()  # or HQ itself says that it lost commits
    await hq.start()
    for home in ("FL-LAB", "admin"):
        with pytest.raises(
            LogContradiction, match=r"took its log back|signed two logs|did not prove"
        ):
            async with (hq.admin if home == "admin" else lambda: hq.client("FL-LAB", **QUICK))():
                pass
    (file,) = hq.home("FL-LAB").glob("log-evidence-*.json")
    verdict = evidence.verify_file(file.read_bytes())
    assert verdict.kind in (evidence.ROLLBACK, evidence.FORK, evidence.UNPROVEN)
    assert verdict.hq == "DC-HQ"
    assert last > 0


async def test_entries_that_were_read_before_are_missed(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin:
        await publish(lab)
        first = await verify_log(admin, admin.log.key, lambda *_: None)
        again = await verify_log(admin, admin.log.key, lambda *_: None)
        assert again.remembered == first.entries
        with admin.log.heads._db:
            admin.log.heads._db.execute("UPDATE read SET hash = ? WHERE entry = 2", (bytes(32),))
            admin.log.heads._db.execute(
                "INSERT INTO read VALUES (?, ?)", (again.last + 5, bytes(32))
            )
        wrong = (await verify_log(admin, admin.log.key, lambda *_: None)).wrong
    assert [one["reason"] for one in wrong[:1]] == [
        "it differs from the entry read and verified here before"
    ]
    assert any(
        "were read and verified here before, and are missing" in one["reason"] for one in wrong
    )


async def test_a_fork_shows_in_a_receipt(hq: Any) -> None:
    """The recipient was shown another log: its receipt carries the head, and the sender cannot
    make them agree.
    """
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        audit = hq_audit(lab)
        newest = lab.log.newest.checkpoint
        other = sign_checkpoint(
            Checkpoint(audit.origin, newest.size, tree.leaf_hash(b"another log"), newest.at),
            audit.signing_key,
        )
        lab.log.observe(other)
        with pytest.raises(LogContradiction, match="HQ signed two logs"):
            await lab.log.check(lab.connection)
    (file,) = hq.home("FL-LAB").glob("log-evidence-*.json")
    assert evidence.verify_file(file.read_bytes()).kind == evidence.FORK
    with pytest.raises(LogContradiction, match="until a person has decided"):
        async with hq.client("FL-LAB", **QUICK):
            pass


def hq_audit(client: Any) -> TransparencyLog:
    """The running HQ's log, with its key: what its operator has."""
    import gc

    from cipherbox.server.hq import HQ

    engines = [
        one.engine
        for one in gc.get_objects()
        if isinstance(one, HQ) and one.config.directory.parent in client.home.path.parents
    ]
    return next(
        one.audit for one in engines if one.audit is not None and one.audit.public == client.log.key
    )


async def test_a_head_that_came_with_its_entry_needs_no_proof_that_it_continues_the_one_before(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = requests._consistency

    def counted(store: Any, sizes: list[int], most: int) -> list[bytes]:
        asked.append(len(sizes))
        return real(store, sizes, most)

    monkeypatch.setattr(requests, "_consistency", counted)
    async with hq.client("FL-LAB") as lab:
        async with lab.publisher(to="CA-RC", batch=1) as publisher:
            for _ in range(20):
                await publisher.send("x")
                await publisher.flush()
        await until(lambda: lab.log.all_proven)
        assert lab.log.newest.checkpoint.size >= 20
    assert max(asked) <= 3  # the newest known, the last one met, and HQ's newest


async def test_a_head_of_another_log_stays_to_be_proven(hq: Any) -> None:
    async with hq.client("FL-LAB", **QUICK) as lab:
        await until(lambda: lab.log.all_proven)
        audit, edge = hq_audit(lab), tree.RightEdge()

        def head(root: bytes) -> bytes:
            known = Checkpoint(audit.origin, edge.size, root, lab.log.newest.checkpoint.at + 1)
            return sign_checkpoint(known, audit.signing_key)

        for number in range(99):
            edge.append(tree.leaf_hash(bytes([number])))
        fork, same = lab.log.observe(head(bytes(32))), lab.log.observe(head(edge.root()))
        leaf = format.leaf(bytes(16), 0, bytes(32))
        payload = format.accepted_payload(format.accepted_head("FL-LAB", 7), [leaf])
        root = format.root_of(format.Group(format.ACCEPTED, payload))
        record = format.Record(100, 7, root, 1).encode()
        path = edge.path()
        edge.append(tree.leaf_hash(record))
        proof = format.make_proof(record, [root], 0, path, head(edge.root()))
        lab.log.confirm(frames.Confirm(7, 100, proof, [], []), [leaf], again=False)
        left = {one.checkpoint[1:3] for one in lab.log._unproven.values()}
        assert left == {fork[1:3], (100, edge.root())}
        assert same[1:3] not in left
        lab.log._unproven.clear()  # they are this test's, and HQ knows none of them


async def test_heads_that_hq_does_not_prove_take_bounded_memory(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.log.verifier.MAX_UNPROVEN", 8)
    async with hq.client("FL-LAB", **QUICK) as lab:
        audit, newest = hq_audit(lab), lab.log.newest.checkpoint
        met = [
            sign_checkpoint(
                Checkpoint(audit.origin, newest.size + n, bytes([n]) * 32, newest.at),
                audit.signing_key,
            )
            for n in range(1, 10)
        ]
        for note in met[:8]:
            lab.log.observe(note)
        lab.log.observe(met[3])  # known
        with pytest.raises(LogUnproven, match="HQ has not proven that 8 heads"):
            lab.log.observe(met[8])
        assert len(lab.log._unproven) == 8


# -- restores --------------------------------------------------------------------------------------


async def restored(hq: Any, tmp_path: Path) -> None:
    """HQ stopped, and its directory replaced by what the backup holds."""
    import shutil

    await hq.stop()
    shutil.rmtree(hq.directory)
    restore(tmp_path / "backup", hq.directory, None, lambda *_: None)
    await hq.start()


async def test_a_restore_goes_on_by_itself_where_nothing_was_lost(hq: Any, tmp_path: Path) -> None:
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
    back_up(hq.config, tmp_path / "backup")
    await restored(hq, tmp_path)
    async with hq.client("FL-LAB") as lab:
        await publish(lab, "after")
        assert lab.log.heads.contradiction() is None


async def test_a_restore_that_lost_entries_needs_an_admins_word(hq: Any, tmp_path: Path) -> None:
    back_up(hq.config, tmp_path / "backup")
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
    await restored(hq, tmp_path)
    with pytest.raises(LogContradiction, match="began anew"):
        async with hq.client("FL-LAB", **QUICK):
            pass
    said: list[str] = []
    await attest_restored(load_home(hq.admin_home), said.append)
    assert "Later entries of that log are lost" in said[0]
    async with hq.client("FL-LAB") as lab:
        await publish(lab, "after")
        assert lab.log.heads.contradiction() is None


# -- witnesses -------------------------------------------------------------------------------------


async def test_a_quorum_of_witnesses_must_cover_a_confirm(hq: Any) -> None:
    await hq.join("WIT-1")
    home = load_home(hq.home("WIT-1"))
    key = load_key(home)
    file = hq.home("FL-LAB") / "client.toml"
    text = file.read_text().replace("quorum = 0", "quorum = 1")
    file.write_text(
        text.replace("witnesses = []", f'witnesses = ["{verifier_key("WIT-1", key).text}"]')
    )
    async with hq.client("FL-LAB", **QUICK) as lab:
        with pytest.raises(Queued, match="WIT-1 have not cosigned"):
            await publish(lab)
    async with (
        hq.client("WIT-1") as client,
        hq.client("FL-LAB") as lab,
        trio.open_nursery() as nursery,
    ):
        seen: list[Any] = []
        nursery.start_soon(Witness(client, key).run, seen.append)
        with trio.fail_after(60):
            await publish(lab, "covered")
        nursery.cancel_scope.cancel()
    assert seen


async def test_a_witness_never_cosigns_a_contradiction(hq: Any) -> None:
    key = load_key(load_home(hq.home("CA-RC")))
    assert load_key(load_home(hq.home("CA-RC"))) == key
    async with hq.client("CA-RC") as client:
        acting = Witness(client, key)
        head = await acting.once()
        assert head is not None
        assert await acting.once() is None
        audit = hq_audit(client)
        other = Checkpoint(audit.origin, head.checkpoint.size, bytes(32), head.checkpoint.at)
        client.log.heads.keep_cosigned(
            head, head._replace(checkpoint=other, note=sign_checkpoint(other, audit.signing_key))
        )
        with pytest.raises(LogContradiction, match="is not consistent with"):
            await acting.once()


async def test_hq_takes_cosignatures_of_its_own_heads_and_of_their_witness_alone(hq: Any) -> None:
    async with hq.client("CA-RC") as client, hq.client("FL-LAB") as lab:
        await Witness(client, load_key(load_home(hq.home("CA-RC")))).once()
        answer: frames.Heads = await lab.connection.request(frames.GetHeads, sizes=[])
        (note,) = answer.cosigned
        own, *_ = decode_note(note).signatures
        padded = Note(
            decode_note(note).text,
            (*[own] * 60, decode_note(note).signatures[1]._replace(name="FL-LAB")),
        )
        for wrong in (note, b"x", answer.head, padded.encode()):
            with pytest.raises(InvalidRequest):
                await lab.connection.request(frames.Cosign, note=wrong)


def test_a_quorum_that_can_never_be_reached_is_refused() -> None:
    from cipherbox.client.log.quorum import Quorum

    with pytest.raises(ConfigError, match="can never be reached"):
        Quorum((), 1)
    with pytest.raises(ConfigError, match="invalid witness key"):
        Quorum(("WIT-1+00000000+AAAA",), 1)
    assert origin_of(bytes(32), bytes(16)).startswith("cipherbox/")


def test_the_first_head_of_a_home_is_consistent() -> None:
    """A witness whose home met no head yet, or whose heads were all lost in a restore."""
    newest = Head(Checkpoint("origin", 7, bytes(32), 1), b"")
    assert first_inconsistent([newest], {}) is None
