-- HQ's signed log: one entry for each commit, written with it.
CREATE TABLE log (
    entry INTEGER PRIMARY KEY, at INTEGER NOT NULL, head BLOB NOT NULL, signature BLOB NOT NULL, body BLOB NOT NULL
);
