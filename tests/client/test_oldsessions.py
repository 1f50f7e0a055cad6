"""Sessions of a home as versions before 0.5 kept them: they go on, once, whatever crashes
meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cipherbox.client.sessions import old as oldsessions
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.errors import Damaged
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.ratchet.settings import SETTINGS
from tests.parties import party

SCHEMA = """
CREATE TABLE sessions (
    peer TEXT NOT NULL, session_id BLOB NOT NULL, made_at INTEGER NOT NULL, since INTEGER NOT NULL,
    speaks INTEGER NOT NULL, retired INTEGER NOT NULL, used_at INTEGER NOT NULL,
    state BLOB NOT NULL,
    PRIMARY KEY (peer, session_id)
) WITHOUT ROWID;
CREATE TABLE secrets (
    kind INTEGER NOT NULL, id INTEGER NOT NULL, made_at INTEGER NOT NULL,
    replaced_at INTEGER NOT NULL,
    secret BLOB NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE TABLE held (envelope_hash BLOB PRIMARY KEY, held_at INTEGER NOT NULL,
content_key BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
STATES = json.loads(
    (Path(__file__).parent.parent / "sealing/sessions/states_version_1.json").read_text()
)
BOX, IDENTITY = SecretBox(bytes(32)), b"i" * 32


def old_file(home: Path) -> None:
    raw = bytes.fromhex(STATES["a"])
    known = session.decode(raw)
    db = sqlite3.connect(home / oldsessions.DATABASE)
    db.executescript(SCHEMA)
    locked = BOX.encrypt(raw, b"CA-RC\x00" + known.session_id)
    db.execute(
        "INSERT INTO sessions VALUES ('CA-RC', ?, ?, ?, 1, 0, 5, ?)",
        (known.session_id, known.made_at, known.since, locked),
    )
    db.execute(
        "INSERT INTO sessions VALUES ('SF-RC', ?, 1, 1, 1, 0, 5, ?)", (b"s" * 16, b"damaged" * 20)
    )
    db.execute(
        "INSERT INTO secrets VALUES (0, 1, 1, 0, ?)",
        (BOX.encrypt(IDENTITY, b"secret\x00\x00\x00\x00\x01"),),
    )
    db.execute(
        "INSERT INTO held VALUES (?, 1, ?)",
        (b"h" * 32, BOX.encrypt(b"k" * 32, b"held" + b"h" * 32)),
    )
    db.execute("INSERT INTO facts VALUES ('once_id', ?)", (b"\x00\x00\x00\x07",))
    db.commit()
    db.close()


def opened(home: Path) -> Sessions:
    return Sessions(home, BOX, party("FL-LAB").identity, SETTINGS, lambda: 2000)


def check(sessions: Sessions) -> None:
    assert sessions.keys.identity() == IDENTITY
    assert sessions.keys._fact("once_id") == b"\x00\x00\x00\x07"
    assert sessions.receiving._held == {b"h" * 32}
    assert sessions.can_send("CA-RC")
    assert not sessions.can_send("SF-RC")  # it could not be read, and is begun anew
    found, chain = sessions._newest("CA-RC") or (None, None)
    assert found is not None
    assert chain is not None
    _, raw = session.encrypt(found, chain, b"next", b"")
    assert raw.hex() == STATES["next"]


def test_they_move_once(tmp_path: Path) -> None:
    old_file(tmp_path)
    for _ in range(2):
        sessions = opened(tmp_path)
        check(sessions)
        sessions.close()
        assert not (tmp_path / oldsessions.DATABASE).exists()


def test_a_crash_before_the_file_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_file(tmp_path)
    before = (tmp_path / oldsessions.DATABASE).read_bytes()
    sessions = opened(tmp_path)
    check(sessions)
    with sessions.sending_chains(["CA-RC"], reserve=True):
        pass
    moved = sessions._newest("CA-RC")
    sessions.close()
    (tmp_path / oldsessions.DATABASE).write_bytes(before)
    sessions = opened(tmp_path)
    assert sessions._newest("CA-RC") == moved  # it is not set back
    sessions.close()


def test_a_damaged_file_stays(tmp_path: Path) -> None:
    (tmp_path / oldsessions.DATABASE).write_bytes(b"no database at all" * 500)
    with pytest.raises(Damaged, match=r"sessions\.sqlite3 is damaged"):
        _ = opened(tmp_path).keys
    assert (tmp_path / oldsessions.DATABASE).exists()


def test_a_home_that_never_received_has_them_too(tmp_path: Path) -> None:
    old_file(tmp_path)
    sessions = opened(tmp_path)
    assert sessions.can_send("CA-RC")
    sessions.close()


def test_a_file_without_tables_is_nothing_to_take_over(tmp_path: Path) -> None:
    (tmp_path / oldsessions.DATABASE).touch()
    sessions = opened(tmp_path)
    assert not sessions.exists
    assert not (tmp_path / oldsessions.DATABASE).exists()
    sessions.close()


def test_two_processes_take_over_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has seen the file, and waits for its turn; then the file is gone."""
    old_file(tmp_path)
    taken: list[Sessions] = []
    locked = oldsessions.transaction

    def late(*places: Any) -> Any:
        monkeypatch.setattr(oldsessions, "transaction", locked)
        taken.append(opened(tmp_path))
        check(taken[0])
        return locked(*places)

    monkeypatch.setattr(oldsessions, "transaction", late)
    sessions = opened(tmp_path)
    check(sessions)
    assert not list(tmp_path.glob(f"{oldsessions.DATABASE}*"))
    for one in (sessions, *taken):
        one.close()
