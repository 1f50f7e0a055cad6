"""Migrate sessions stored before version 0.5 in their own file, `sessions.sqlite3`, with both
halves in one.

They are moved once: the chains into the outbox, then everything else into the inbox, then the file
is removed. After a crash this is repeated; existing rows stay. It all happens under the inbox's
lock, so that no other process reads a file that is about to be removed.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from cipherbox import clock
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.sessions.sending_chains import at
from cipherbox.errors import CipherBoxError
from cipherbox.portable import sync_directory
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.ratchet import session

DATABASE = "sessions.sqlite3"


def take_over(
    home: Path, box: SecretBox, inbox: sqlite3.Connection, path: Path, outbox: sqlite3.Connection
) -> None:
    """Move the file's rows into the databases of inbox and outbox, and remove the file, if it
    exists.
    """
    old = home / DATABASE
    if not old.exists():
        return
    now = clock.now_ms()
    with transaction(inbox, path):
        if not old.exists():
            return
        sessions, secrets, held, facts = _read(old)
        for peer, session_id, made_at, since, retired, used_at, locked in sessions:
            bound = peer.encode() + b"\x00" + session_id
            # an unreadable session is skipped; a new one is begun
            with suppress(CipherBoxError):
                state = session.decode(box.decrypt(locked, bound))
                chain = state.chain
                if chain is not None:
                    row = (
                        session_id,
                        *at(chain),
                        now,
                        box.encrypt(session.encode_chain(chain), b"chain" + session_id),
                    )
                    outbox.execute("INSERT OR IGNORE INTO chains VALUES (?, ?, ?, ?, ?)", row)
                half = box.encrypt(session.encode(attrs.evolve(state, chain=None)), bound)
                inbox.execute(
                    "INSERT OR IGNORE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, NULL)",
                    (peer, session_id, made_at, since, state.state.turn, retired, used_at, half),
                )
        inbox.executemany("INSERT OR IGNORE INTO secrets VALUES (?, ?, ?, ?, ?)", secrets)
        inbox.executemany("INSERT OR IGNORE INTO held VALUES (?, ?, ?)", held)
        inbox.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", facts)
    with transaction(inbox, path), translated(old):
        for ending in ("", "-wal", "-shm"):
            old.with_name(DATABASE + ending).unlink(missing_ok=True)
        sync_directory(home)


def _read(old: Path) -> list[list[tuple[Any, ...]]]:
    with translated(old):
        found = sqlite3.connect(old, isolation_level=None, timeout=30.0)
        try:
            if found.execute("PRAGMA schema_version").fetchone() == (0,):
                return [[], [], [], []]  # it crashed before creating its tables
            columns = "peer, session_id, made_at, since, retired, used_at, state"
            places = (f"{columns} FROM sessions", "* FROM secrets", "* FROM held", "* FROM facts")
            return [found.execute(f"SELECT {place}").fetchall() for place in places]
        finally:
            found.close()
