"""HQ tries to hide a contradiction of its log, and clients try to make honest ones believe in
one that is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from cipherbox.client.home import load_home
from cipherbox.client.log import verifier
from cipherbox.client.log.heads import Head, Heads
from cipherbox.client.log.restores import RestoreStatement, attest_restored, make_statement
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from cipherbox.errors import InvalidRequest, LogContradiction, Queued
from cipherbox.server.operations.backup import back_up
from cipherbox.server.requests import log as logrequests
from cipherbox.wire import frames
from tests.client.test_log_heads import QUICK, hq_audit, publish, restored
from tests.client.waiting import until


def forked(client: Any, more: int = 0) -> bytes:
    """A head that HQ signed for somebody else: of the same entries and ``more``, with another
    content.
    """
    audit, newest = hq_audit(client), client.log.newest.checkpoint
    root = tree.leaf_hash(b"another log")
    return sign_checkpoint(
        Checkpoint(audit.origin, newest.size + more, root, newest.at + 1), audit.signing_key
    )


# -- HQ hides what it did --------------------------------------------------------------------------


def silent(*_: object) -> list[bytes]:
    raise InvalidRequest("not today")


async def test_an_hq_that_refuses_to_prove_its_heads_is_not_used(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork showed in a receipt.  HQ knows by the question that it is caught, and gives no
    answer.
    """
    async with hq.client("FL-LAB", **QUICK) as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        with monkeypatch.context() as patch:
            patch.setattr(verifier, "PROOF_TIMEOUT_S", 0.5)
            patch.setattr(verifier, "RETRY_S", 0.1)
            patch.setattr(logrequests, "_consistency", silent)
            lab.log.observe(forked(lab, 3), "CA-RC")
            await until(lambda: lab.connection.current is None)
            with pytest.raises(Queued, match="not today"):
                await publish(lab)
    with monkeypatch.context() as patch:  # and no other program of this home uses it
        patch.setattr(logrequests, "_consistency", silent)
        with pytest.raises(InvalidRequest, match="not today"):
            async with hq.client("FL-LAB", **QUICK):
                pass
    with pytest.raises(LogContradiction):
        async with hq.client("FL-LAB", **QUICK):
            pass


async def never(*_: object, **__: object) -> None:
    await trio.sleep_forever()


async def test_what_a_short_command_could_not_verify_is_verified_by_the_next(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB", **QUICK) as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        monkeypatch.setattr(lab.connection, "request", never)
        monkeypatch.setattr(verifier, "FINISH_S", 0.05)
        lab.log.observe(forked(lab))
    with pytest.raises(LogContradiction, match="HQ signed two logs"):
        async with hq.client("FL-LAB", **QUICK):
            pass


async def test_two_programs_of_one_home_cannot_be_shown_two_logs(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HQ holds the answer to one program until another has believed the other log, and ended."""
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        ask, note, other = lab.connection.request, forked(lab, 1), Heads(hq.home("FL-LAB"))

        async def held(kind: Any, **fields: Any) -> Any:
            answer = await ask(kind, **fields)
            before = other.newest()
            if before is not None and before.note != note:
                assert other.advance(Head(verify_checkpoint(note, lab.log.key), note), before, {})
            return answer

        monkeypatch.setattr(lab.connection, "request", held)
        with pytest.raises(LogContradiction):
            await lab.log.check(lab.connection)
        other.close()


async def left_of(admin: Any) -> tuple[int, bytes]:
    """How many entries the store that runs now began with, and their root."""
    answer: frames.Proven = await admin.connection.request(
        frames.Prove, envelopes=[], serials=[], incarnation=True
    )
    after = orjson.loads(answer.statements[0].payload)["after"]
    return after["size"], bytes.fromhex(after["root"])


# -- restores --------------------------------------------------------------------------------------


async def test_an_admins_word_holds_for_a_log_that_begins_as_it_says(
    hq: Any, tmp_path: Path
) -> None:
    """HQ has the word, and shows a log that does not begin with the entries that the admin
    named.
    """
    back_up(hq.config, tmp_path / "backup")
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        old = lab.log.newest.checkpoint
    await restored(hq, tmp_path)
    files = load_home(hq.admin_home)
    async with hq.admin() as admin:
        new, (size, root) = admin.log.newest.checkpoint, await left_of(admin)
        for word in (
            RestoreStatement("", (old.origin,), size, bytes(32), new.origin),
            RestoreStatement("", (old.origin,), size - 1, root, new.origin),
            RestoreStatement("", (old.origin,), size, root, new.origin[:-4] + "0000"),
        ):
            await admin.connection.request(
                frames.AttestRestore, statement=make_statement(word, list(files.chain), files.key)
            )
            with pytest.raises(LogContradiction, match="began anew"):
                async with hq.client("FL-LAB", **QUICK):
                    pass


async def test_the_word_of_any_certified_client_counts_and_its_name_is_said(
    hq: Any, tmp_path: Path
) -> None:
    """HQ with a client on its side: who is an admin, HQ alone knows."""
    back_up(hq.config, tmp_path / "backup")
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        old = lab.log.newest.checkpoint
    await restored(hq, tmp_path)
    files = load_home(hq.home("CA-RC"))
    async with hq.admin() as admin:
        new = admin.log.newest.checkpoint
        word = RestoreStatement("", (old.origin,), *await left_of(admin), new.origin)
        statement = make_statement(word, list(files.chain), files.key)
        await admin.connection.request(frames.AttestRestore, statement=statement)
    said: list[str] = []
    async with hq.client("FL-LAB", on_event=said.append):
        pass
    assert any("HQ was restored from a backup, as CA-RC has signed" in line for line in said)


async def test_a_store_that_was_restored_twice_is_explained_too(hq: Any, tmp_path: Path) -> None:
    await hq.join("WIT-1")
    back_up(hq.config, tmp_path / "backup")
    async with hq.client("FL-LAB") as lab, hq.client("WIT-1") as away:
        await publish(lab)
        await lab.log.check(lab.connection)
        await away.log.check(away.connection)
    for text in ("after the first", "after the second"):
        await restored(hq, tmp_path)
        with pytest.raises(LogContradiction):
            async with hq.client("FL-LAB", **QUICK):
                pass
        await attest_restored(load_home(hq.admin_home), lambda _: None)
        async with hq.client("FL-LAB") as lab, hq.admin() as admin:
            await publish(lab, text)
            await admin.log.check(admin.connection)
            await lab.log.check(lab.connection)
    async with hq.client("WIT-1") as away:  # it saw neither
        assert away.log.heads.contradiction() is None


async def test_a_genuine_head_of_before_a_restore_stops_nobody_for_good(
    hq: Any, tmp_path: Path
) -> None:
    """A client that never saw the lost entries meets a head of them in a receipt; an admin's
    word explains it.
    """
    back_up(hq.config, tmp_path / "backup")
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        lost = lab.log.newest.note
    await restored(hq, tmp_path)
    async with hq.client("CA-RC") as newcomer:
        newcomer.log.observe(lost, "FL-LAB")
        with pytest.raises(LogContradiction, match="began anew"):
            await newcomer.log.check(newcomer.connection)
    await attest_restored(load_home(hq.admin_home), lambda _: None)
    async with hq.client("CA-RC") as newcomer:
        newcomer.log.observe(lost, "FL-LAB")
        assert newcomer.log.all_proven
        await newcomer.log.check(newcomer.connection)


# -- clients ---------------------------------------------------------------------------------------


async def test_heads_in_one_clients_receipts_cost_one_proof_at_a_time(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await publish(lab)
        await lab.log.check(lab.connection)
        audit = hq_audit(lab)
        for size in range(1, 200):
            lab.log.observe(
                sign_checkpoint(Checkpoint(audit.origin, size, bytes(32), size), audit.signing_key),
                "MI-LAB",
            )
        assert len(lab.log._unproven) == 1
        lab.log._unproven.clear()


async def test_old_genuine_heads_in_receipts_are_no_contradiction(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        notes = [lab.log.newest.note]
        for n in range(3):
            await publish(lab, f"{n}")
            await lab.log.check(lab.connection)
            notes.append(lab.log.newest.note)
        for client, note in zip(("MI-LAB", "OH-LAB", "CA-RC"), notes, strict=False):
            lab.log.observe(note, client)
        await lab.log.check(lab.connection)
        assert lab.log.all_proven
        assert lab.log.heads.contradiction() is None
