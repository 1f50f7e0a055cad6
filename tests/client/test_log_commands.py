"""What people type about HQ's log on a client's machine: `witness`, `audit evidence`, `audit
accept`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from cipherbox.cli import witness
from cipherbox.cli.main import cli
from cipherbox.cli.running import run
from cipherbox.client.log.heads import Heads
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope.checkpoint import Checkpoint, decode_note, sign_checkpoint
from cipherbox.errors import LogContradiction
from cipherbox.server.requests import log as logrequests
from cipherbox.store.port import Store
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import frames
from tests.client.test_log_heads import QUICK, hq_audit


async def typed(home: Path, *words: str, answer: str = "") -> Result:
    def call() -> Result:
        return CliRunner().invoke(cli, ["--home", str(home), *words], answer, standalone_mode=False)

    with trio.fail_after(60):
        return await trio.to_thread.run_sync(call)


async def contradict(hq: Any) -> Path:
    """The lab meets a fork of HQ's log; the file of evidence."""
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
        await lab.log.check(lab.connection)
        newest, audit = lab.log.newest.checkpoint, hq_audit(lab)
        other = Checkpoint(audit.origin, newest.size, tree.leaf_hash(b"another log"), newest.at)
        lab.log.observe(sign_checkpoint(other, audit.signing_key))
        with pytest.raises(LogContradiction):
            await lab.log.check(lab.connection)
    (file,) = hq.home("FL-LAB").glob("log-evidence-*.json")
    assert isinstance(file, Path)
    return file


async def test_a_person_goes_on_after_a_contradiction_and_only_when_sure(hq: Any) -> None:
    file = await contradict(hq)
    home = hq.home("FL-LAB")
    refused = await typed(home, "audit", "accept", answer="n\n")
    assert "HQ signed two logs" in refused.output
    assert file.name in refused.output
    with pytest.raises(LogContradiction):
        async with hq.client("FL-LAB", **QUICK):
            pass
    done = await typed(home, "audit", "accept", "--yes")
    assert "Forgotten" in done.output, done.exception
    assert file.exists()
    async with hq.client("FL-LAB") as lab:
        await lab.publish("after", to="CA-RC")
    heads = Heads(home)
    assert heads.contradiction() is None
    assert heads.newest() is not None
    heads.close()
    again = await typed(home, "audit", "accept", "--yes")
    assert "No contradiction" in again.output


async def test_evidence_is_judged_with_no_home_and_no_hq(hq: Any, tmp_path: Path) -> None:
    file = await contradict(hq)
    await hq.stop()
    proven = await typed(tmp_path / "none", "audit", "evidence", str(file))
    assert "Proven (fork)" in proven.output
    assert proven.return_value == 0
    shown = json.loads(
        (await typed(tmp_path / "none", "audit", "evidence", "--json", str(file))).output
    )
    assert shown["kind"] == "fork"
    assert shown["hq"] == "DC-HQ"
    assert shown["first"]["entries"] == shown["second"]["entries"]
    document = json.loads(file.read_bytes())
    document["second"] = document["first"]
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(document))
    harmless = await typed(tmp_path / "none", "audit", "evidence", str(alone))
    assert harmless.return_value == 1
    assert "Proven" not in harmless.output


async def test_a_witness_cosigns_once_from_the_command_line(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "run_until_stopped", run)  # signals reach the main thread alone
    home = hq.home("CA-RC")
    key = (await typed(home, "witness", "--key")).output
    assert key.startswith("CA-RC+")
    done = await typed(home, "witness", "--once")
    assert "Cosigned" in done.output, done.exception
    async with hq.client("FL-LAB") as lab:
        answer: frames.Heads = await lab.connection.request(frames.GetHeads, sizes=[])
        (note,) = answer.cosigned
    assert [one.name for one in decode_note(note).signatures][-1] == "CA-RC"


def names(store: Store) -> list[str]:
    return [note.decode() for note in logrequests.cosigned_heads(store)]


# -- places at HQ ----------------------------------------------------------------------------------


async def test_clients_that_are_no_witnesses_keep_no_place_from_one(hq: Any) -> None:
    await hq.stop()
    store = open_store(hq.directory)
    try:
        for number in range(2 * logrequests.MOST_WITNESSES):
            logrequests.keep_cosigned(store, f"X-{number}", f"X-{number}".encode())
            if number % 16 == 0:
                logrequests.keep_cosigned(store, "WIT-1", b"WIT-1")
            assert "WIT-1" in names(store)
        found = names(store)
        assert len(found) == len(set(found)) == logrequests.MOST_WITNESSES
        for _ in range(2 * logrequests.MOST_WITNESSES):  # one client alone takes nobody's place
            logrequests.keep_cosigned(store, "X-127", b"X-127")
        assert set(names(store)) == set(found)
    finally:
        store.close()
