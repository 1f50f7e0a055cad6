-- Times are ms since 1970, 0 where there is none.  Names are text as declared.

CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE clients (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, added_at INTEGER NOT NULL,
    revoked_at INTEGER NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE exchanges (name TEXT PRIMARY KEY, type INTEGER NOT NULL) WITHOUT ROWID;

-- A dropped queue keeps its row, so that the record of what it carried keeps its name.
CREATE TABLE queues (
    queue_no INTEGER PRIMARY KEY, name TEXT NOT NULL, owner TEXT NOT NULL, readers TEXT NOT NULL,
    depth INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL DEFAULT 1, next INTEGER NOT NULL DEFAULT 1, dropped INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX queues_by_name ON queues (name) WHERE dropped = 0;

CREATE TABLE bindings (
    exchange TEXT NOT NULL, queue TEXT NOT NULL, routing_key TEXT NOT NULL,
    PRIMARY KEY (exchange, queue, routing_key)
) WITHOUT ROWID;

CREATE TABLE grants (
    client TEXT NOT NULL, right TEXT NOT NULL, resource TEXT NOT NULL, PRIMARY KEY (client, right, resource)
) WITHOUT ROWID;

-- One row for each envelope, kept after its body is gone.  `pending` counts its queues that have not acknowledged it;
-- it is kept for envelopes of several queues only (fan > 1).
CREATE TABLE envelopes (
    number INTEGER PRIMARY KEY, sender TEXT NOT NULL, envelope_id BLOB NOT NULL, generation INTEGER NOT NULL,
    messages INTEGER NOT NULL, envelope_hash BLOB NOT NULL, exchange TEXT NOT NULL, routing_key TEXT NOT NULL,
    sealed_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, accepted_at INTEGER NOT NULL,
    fan INTEGER NOT NULL, pending INTEGER NOT NULL, bytes INTEGER NOT NULL
);
CREATE INDEX envelopes_by_id ON envelopes (envelope_id);

-- The bytes, deleted when the last queue has acknowledged: here, or `bytes` of a file of the spool from `at` on.
CREATE TABLE bodies (
    number INTEGER PRIMARY KEY, stored_hash BLOB NOT NULL, data BLOB, spool TEXT, at INTEGER, bytes INTEGER
);
CREATE INDEX bodies_by_spool ON bodies (spool) WHERE spool IS NOT NULL;

-- One row for each envelope in each queue, kept.  state: 0 waiting, 1 delivered, 2 acknowledged, 3 dead letter;
-- client: who it was last delivered to, '' before that.
CREATE TABLE entries (
    queue_no INTEGER NOT NULL, seq INTEGER NOT NULL, number INTEGER NOT NULL, state INTEGER NOT NULL,
    attempts INTEGER NOT NULL, delivered_at INTEGER NOT NULL, acknowledged_at INTEGER NOT NULL, client TEXT NOT NULL,
    PRIMARY KEY (queue_no, seq)
) WITHOUT ROWID;
CREATE INDEX entries_by_number ON entries (number);

CREATE TABLE dead_letters (
    queue_no INTEGER NOT NULL, seq INTEGER NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL,
    reason TEXT NOT NULL, by TEXT NOT NULL, PRIMARY KEY (queue_no, seq)
) WITHOUT ROWID;

CREATE TABLE senders (sender TEXT PRIMARY KEY, highest BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE usage (
    sender TEXT NOT NULL, queue TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (sender, queue)
) WITHOUT ROWID;

-- What is encrypted is base64 text, as the view shows it: SQLite has no function that makes it.
CREATE TABLE bundles (
    client TEXT NOT NULL, sequence INTEGER NOT NULL, bundle_hash BLOB NOT NULL, ciphertext TEXT NOT NULL,
    nonce TEXT NOT NULL, tag TEXT NOT NULL, added_at INTEGER NOT NULL, ends_at INTEGER NOT NULL,
    PRIMARY KEY (client, sequence)
) WITHOUT ROWID;
CREATE UNIQUE INDEX bundles_by_hash ON bundles (bundle_hash);

CREATE TABLE enrolments (
    secret_hash BLOB PRIMARY KEY, client TEXT NOT NULL, role TEXT NOT NULL, approve INTEGER NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, state TEXT NOT NULL, csr BLOB NOT NULL,
    number TEXT NOT NULL, chain BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, client TEXT NOT NULL, issued_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    revoked_at INTEGER NOT NULL, der BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX certificates_by_client ON certificates (client);

-- The numbers a message can have in its envelope: what the views below count with.
CREATE TABLE message_numbers (n INTEGER PRIMARY KEY);
WITH RECURSIVE counter (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM counter WHERE n < 65535)
INSERT INTO message_numbers SELECT n FROM counter;

-- A dead letter whose next generation came has a second entry in the same queue, and that one counts.
CREATE VIEW living_entries AS
SELECT * FROM entries d WHERE state < 3
    OR NOT EXISTS (SELECT 1 FROM entries x WHERE x.number = d.number AND x.queue_no = d.queue_no AND x.seq > d.seq);

CREATE VIEW message_metadata AS
SELECT
    lower(substr(hex(e.envelope_id), 1, 8) || '-' || substr(hex(e.envelope_id), 9, 4) || '-'
        || substr(hex(e.envelope_id), 13, 4) || '-' || substr(hex(e.envelope_id), 17, 4) || '-'
        || substr(hex(e.envelope_id), 21, 8) || printf('%04x', m.n)) AS message_id,
    e.sender AS client_id,
    e.exchange AS exchange_name,
    e.routing_key AS routing_key,
    strftime('%Y-%m-%dT%H:%M:%fZ', e.accepted_at / 1000.0, 'unixepoch') AS sent_time,
    (SELECT CASE WHEN min(d.delivered_at) > 0
        THEN strftime('%Y-%m-%dT%H:%M:%fZ', max(d.delivered_at) / 1000.0, 'unixepoch') END
        FROM living_entries d WHERE d.number = e.number) AS delivered_time,
    (SELECT CASE WHEN min(d.acknowledged_at) > 0
        THEN strftime('%Y-%m-%dT%H:%M:%fZ', max(d.acknowledged_at) / 1000.0, 'unixepoch') END
        FROM living_entries d WHERE d.number = e.number) AS acknowledged_time
FROM envelopes e JOIN message_numbers m ON m.n < e.messages;

CREATE VIEW message_deliveries AS
SELECT
    lower(substr(hex(e.envelope_id), 1, 8) || '-' || substr(hex(e.envelope_id), 9, 4) || '-'
        || substr(hex(e.envelope_id), 13, 4) || '-' || substr(hex(e.envelope_id), 17, 4) || '-'
        || substr(hex(e.envelope_id), 21, 8) || printf('%04x', m.n)) AS message_id,
    q.name AS queue_name,
    coalesce(nullif(d.client, ''), nullif(q.owner, '')) AS client_id,
    CASE WHEN d.delivered_at > 0
        THEN strftime('%Y-%m-%dT%H:%M:%fZ', d.delivered_at / 1000.0, 'unixepoch') END AS delivered_time,
    CASE WHEN d.acknowledged_at > 0
        THEN strftime('%Y-%m-%dT%H:%M:%fZ', d.acknowledged_at / 1000.0, 'unixepoch') END AS acknowledged_time,
    CASE d.state WHEN 0 THEN 'waiting' WHEN 1 THEN 'delivered' WHEN 2 THEN 'acknowledged' ELSE 'dead letter' END AS state
FROM envelopes e
JOIN message_numbers m ON m.n < e.messages
JOIN living_entries d ON d.number = e.number
JOIN queues q ON q.queue_no = d.queue_no;

-- The newest bundle of each client, in base64.
CREATE VIEW public_keys AS
SELECT client AS client_id, ciphertext AS public_key_ciphertext, nonce, tag
FROM bundles b WHERE sequence = (SELECT max(sequence) FROM bundles x WHERE x.client = b.client);
