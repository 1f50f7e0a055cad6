"""Sessions in which nothing more is said: their other end, or this one, has begun with other
keys.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cipherbox.client.inbox.schema import DATABASE, open_inbox
from cipherbox.client.local_database import translated


def retire_sessions(home: Path, peer: str = "") -> None:
    """Retire the sessions with ``peer``, or all of them.  What still comes in them opens; the next
    message begins anew.

    For commands alone: no part of this process may have the database open (see `local_database`).
    """
    path = home / DATABASE
    if not path.exists():
        return
    with translated(path), closing(open_inbox(home)) as db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'sessions'").fetchone():
            db.execute("UPDATE sessions SET retired = 1 WHERE ? IN ('', peer)", (peer,))
