-- Prekeys for sessions: a client's signed part, and one-time parts, each handed out once.
CREATE TABLE prekey_offers (client TEXT PRIMARY KEY, signed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE prekeys (
    client TEXT NOT NULL, number INTEGER NOT NULL, once BLOB NOT NULL, PRIMARY KEY (client, number)
);
