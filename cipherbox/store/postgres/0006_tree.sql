-- The signed log is an append-only tree from here on; what version 0.5 wrote stays readable.
ALTER TABLE log RENAME TO old_log;

-- One entry for each commit, written with it.  `record` is its leaf; `nodes` holds the hashes of the perfect subtrees
-- that the leaf completes, from level 0 up.  Retention empties record and body, and keeps the nodes.
CREATE TABLE log (
    entry bigint PRIMARY KEY, at bigint NOT NULL, record bytea NOT NULL, body bytea NOT NULL, nodes bytea NOT NULL,
    incarnation bytea NOT NULL
);

-- The entry that says that it was accepted; 0: one of the old log.
ALTER TABLE envelopes ADD COLUMN log_entry bigint NOT NULL DEFAULT 0;
