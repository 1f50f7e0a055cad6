-- The signed log is an append-only tree from here on; what version 0.5 wrote stays readable.
ALTER TABLE log RENAME TO old_log;

-- One entry for each commit, written with it.  `record` is its leaf; `nodes` holds the hashes of the perfect subtrees
-- that the leaf completes, from level 0 up.  Retention empties record and body, and keeps the nodes.
CREATE TABLE log (
    entry INTEGER PRIMARY KEY, at INTEGER NOT NULL, record BLOB NOT NULL, body BLOB NOT NULL, nodes BLOB NOT NULL,
    incarnation BLOB NOT NULL
);

-- The entry that says that it was accepted; 0: one of the old log.
ALTER TABLE envelopes ADD COLUMN log_entry INTEGER NOT NULL DEFAULT 0;
