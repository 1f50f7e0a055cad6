"""The signed log of a real HQ: whole over failures and restarts, with proofs that publishers can
check.
"""

from __future__ import annotations

from pathlib import Path

from cipherbox.broker.model import LogRow
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.layout import hashes, split
from cipherbox.errors import StoreUnavailable
from cipherbox.store.port import Store
from cipherbox.wire import frames
from tests.server.hq import Running, running


def check(store: Store, key: bytes) -> list[LogRow]:
    """All entries, each verified."""
    rows = store.log(0, 100_000, 1 << 40)
    edge = tree.RightEdge()
    for row in rows:
        log.verify_entry(row.record, row.body, edge.size + 1)
        assert b"".join(edge.append(tree.leaf_hash(row.record))) == row.nodes
    assert tree.root_at(edge.size, store.log_nodes) == edge.root()
    return rows


def accepted(rows: list[LogRow]) -> list[bytes]:
    return [
        one.envelope_id
        for row in rows
        for group in log.decode_groups(row.body)
        if group.kind == log.ACCEPTED
        for one in log.read_accepted(group.payload)[2]
    ]


async def publish(here: Running, count: int) -> list[tuple[bytes, frames.Confirm]]:
    sender, recipient = await here.person("FL-LAB"), await here.person("CA-RC")
    raw = await here.client("FL-LAB")
    found = []
    for _ in range(count):
        envelope = sender.seal(recipient).raw
        found.append((envelope, await raw.publish(envelope)))
    return found


async def test_every_confirm_carries_a_proof_and_the_chain_goes_on_after_a_restart(
    tmp_path: Path,
) -> None:
    ids = []
    for _ in range(2):
        async with running(tmp_path / "hq") as here:
            key = here.hq.log_key[:32]
            for envelope, confirm in await publish(here, 3):
                layout = split(envelope)
                prefix = layout.prefix
                leaf = log.leaf(
                    prefix.envelope_id, prefix.generation, hashes(envelope, layout).envelope_hash
                )
                found = log.verify_proof(confirm.proof, "FL-LAB", [leaf], key, confirm.accepted_at)
                assert found.record.index == found.head.size == confirm.log_position
                ids.append(prefix.envelope_id)
            rows = check(here.hq.store, key)
    assert accepted(rows) == ids
    kinds = {group.kind for row in rows for group in log.decode_groups(row.body)}
    assert log.ACTS in kinds  # clients were added


async def test_a_commit_that_failed_leaves_no_gap(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as here:
        await publish(here, 1)
        real, failures = here.hq.store.commit, []

        def fail_once(changes: object, epoch: int) -> None:
            if not failures and changes.envelopes:  # type: ignore[attr-defined]
                failures.append(1)
                raise StoreUnavailable("for a test")
            real(changes, epoch)  # type: ignore[arg-type]

        here.hq.store.commit = fail_once  # type: ignore[method-assign]
        sender, recipient = await here.person("FL-LAB"), await here.person("CA-RC")
        raw = await here.client("FL-LAB")
        answer = await raw.publish(sender.seal(recipient).raw)
        assert isinstance(answer, frames.Error | frames.GoingAway)
        assert failures
        (last,) = await publish(here, 1)
        rows = check(here.hq.store, here.hq.log_key[:32])
        assert last[1].log_position == rows[-1].index or last[1].log_position in [
            r.index for r in rows
        ]
        assert len(accepted(rows)) == 2


async def test_acts_name_who_did_them(tmp_path: Path) -> None:
    import orjson

    async with running(tmp_path / "hq") as here:
        await here.person("boss", role="admin")
        await here.person("FL-LAB")
        boss = await here.client("boss")
        await boss.ask(frames.DeclareExchange, "labs", 2)
        await boss.ask(frames.DeclareExchange, "labs", 2)  # which changes nothing
        await boss.ask(frames.Grant, "FL-LAB", "publish", "labs", True)
        acts = [
            act
            for row in check(here.hq.store, here.hq.log_key[:32])
            for group in log.decode_groups(row.body)
            if group.kind == log.ACTS
            for act in orjson.loads(group.payload)
        ]
        assert [act[:2] for act in acts if act[0]] == [
            ["boss", "DeclareExchange"],
            ["boss", "Grant"],
        ]


async def test_only_admins_read_it(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as here:
        await publish(here, 2)
        lab = await here.client("FL-LAB")
        await lab.send(frames.ReadLog(99, 0, 10, False))
        answer = await lab.next()
        assert isinstance(answer, frames.Error | frames.GoingAway)
        await here.person("boss", role="admin")
        boss = await here.client("boss")
        page = await boss.ask(frames.ReadLog, 0, 2, False)
        assert len(page.entries) == 2
        assert page.last > 2
