"""The inbox's database: its file name, the migrations that create its tables, oldest first, and how
it is opened.

Sessions store their receiving chains in it, so that an envelope and its ratchet step are one
transaction; so the schema is below both. A released migration never changes.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from cipherbox.client.inbox.encrypted_lines import STEP as KEPT
from cipherbox.client.inbox.handler_contents import STEP as CONTENTS
from cipherbox.client.inbox.lines_file import At, keep_tail
from cipherbox.client.inbox.transfers import FIRST_STEP, SHARED
from cipherbox.client.inbox.transfers import STEP as TRANSFERS
from cipherbox.client.local_database import open_database, translated
from cipherbox.client.receiving.attempts import STEP as LATER
from cipherbox.client.sessions.receiving_chains import STEP as HEARING

DATABASE, LINES = "inbox.sqlite3", "data/received_messages.jsonl"
OLDEST = 4  # what 0.5.0 wrote
STEPS = (
    """
CREATE TABLE envelopes (
  number INTEGER PRIMARY KEY,
  sender TEXT NOT NULL,
  envelope_id BLOB NOT NULL,
  generation INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  queue TEXT NOT NULL,
  accepted_at INTEGER NOT NULL,
  received_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX envelopes_by_id ON envelopes (sender, envelope_id);
CREATE TABLE senders (sender TEXT PRIMARY KEY, highest BLOB NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO state VALUES ('length', 0), ('watermark', 0);
""",
    # What the recipient's receipts say.  receipt: 0 given up, NULL owed; what came before version 2
    # owes none.
    """
ALTER TABLE envelopes ADD COLUMN envelope_hash BLOB;
ALTER TABLE envelopes ADD COLUMN receipt INTEGER;
UPDATE envelopes SET receipt = 0;
CREATE INDEX envelopes_owed ON envelopes (number) WHERE receipt IS NULL;
CREATE TABLE refusals (
  sender TEXT NOT NULL, envelope_id BLOB NOT NULL, generation INTEGER NOT NULL, outcome INTEGER NOT NULL,
  envelope_hash BLOB NOT NULL, accepted_at INTEGER NOT NULL, reason TEXT NOT NULL, refused_at INTEGER NOT NULL,
  receipt INTEGER, PRIMARY KEY (sender, envelope_id, generation, outcome)
) WITHOUT ROWID;
CREATE TABLE receipts (receipt INTEGER PRIMARY KEY, signed_at INTEGER NOT NULL, root BLOB NOT NULL);
"""  # noqa: E501
    + FIRST_STEP,
    HEARING,
    # length -1: no inbox has looked at the lines yet; sessions may have made this database.
    """
UPDATE state SET value = -1 WHERE name = 'length' AND value = 0 AND NOT EXISTS (SELECT 1 FROM senders);
""",  # noqa: E501
    "ALTER TABLE envelopes ADD COLUMN commitment BLOB NOT NULL DEFAULT x'';\n",
    # Which file the lines are in; what was received, to be shown and written again; files by one
    # rule.
    """
INSERT INTO state VALUES ('inode', 0), ('begun', strftime('%s', 'now') * 1000);
"""
    + KEPT
    + TRANSFERS
    + CONTENTS,
    LATER,
    # The entries of HQ's log that say what was accepted, as HQ named them; 0: none, as before 0.6.
    """
ALTER TABLE envelopes ADD COLUMN log_entry INTEGER NOT NULL DEFAULT 0;
ALTER TABLE refusals ADD COLUMN log_entry INTEGER NOT NULL DEFAULT 0;
""",
    SHARED,
    # When its receipt was signed is all that is kept of it: `receipt` of envelopes and refusals is
    # ms since 1970 (a number of this table, before).  Nothing ever read the table.
    "DROP TABLE receipts;\n",
    # Whether the sender waits for the receipt; a handler may finish long after the envelope came.
    "ALTER TABLE envelopes ADD COLUMN prompt INTEGER NOT NULL DEFAULT 0;\n",
)


def open_inbox(home: Path, say: Callable[[str], None] = lambda _: None) -> sqlite3.Connection:
    """Open or create the database, as `open_database` does. If it lost commits, keep the lines that
    they recorded: only the first to open it can know.
    """
    path, losses = home / DATABASE, list[str]()
    db = open_database(path, STEPS, OLDEST, losses.append)
    try:
        with translated(path):
            for lost in losses:
                state = dict(db.execute("SELECT name, value FROM state"))
                keep_tail(home / LINES, At(state["length"], state["inode"], state["begun"]))
                say(f"{lost}; HQ delivers again what was not acknowledged")
    except BaseException:
        db.close()
        raise
    return db
