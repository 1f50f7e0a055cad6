-- HQ's signed log: one entry for each commit, written with it.
CREATE TABLE log (entry INTEGER PRIMARY KEY, head BLOB NOT NULL, signature BLOB NOT NULL, body BLOB NOT NULL);
