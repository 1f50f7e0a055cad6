-- Whom a client takes mail from, as it told HQ: lists of client ids in JSON.
CREATE TABLE contacts (client TEXT PRIMARY KEY, allowed TEXT NOT NULL, blocked TEXT NOT NULL) WITHOUT ROWID;
