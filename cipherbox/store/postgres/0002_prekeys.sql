-- Prekeys for sessions: a client's signed part, and one-time parts, each handed out once.
CREATE TABLE prekey_offers (client text COLLATE "C" PRIMARY KEY, signed bytea NOT NULL);
CREATE TABLE prekeys (
    client text COLLATE "C" NOT NULL, number bigint NOT NULL, once bytea NOT NULL, PRIMARY KEY (client, number)
);
