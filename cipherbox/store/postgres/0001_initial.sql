-- Times on HQ's clock that tools ask for are timestamptz, NULL where there is none; all others are ms since 1970, 0 where
-- there is none.  Names are text as declared.

CREATE TABLE settings (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL);

-- One row: who may write.  Every commit changes it, so of two writers one waits, finds another epoch, and writes nothing.
CREATE TABLE writer (
    one boolean PRIMARY KEY DEFAULT true CHECK (one), epoch bigint NOT NULL, commits bigint NOT NULL,
    holder text NOT NULL, pid integer NOT NULL, session_began timestamptz, renewed_at timestamptz NOT NULL,
    last_number bigint NOT NULL DEFAULT 0 -- the highest envelope number that was given
) WITH (fillfactor = 10);
INSERT INTO writer VALUES (true, 0, 0, '', 0, NULL, '-infinity');

CREATE TABLE clients (
    name text COLLATE "C" PRIMARY KEY, role text NOT NULL, added_at bigint NOT NULL, revoked_at bigint NOT NULL,
    reason text NOT NULL
);

CREATE TABLE exchanges (name text COLLATE "C" PRIMARY KEY, type smallint NOT NULL);

-- A dropped queue keeps its row, so that the record of what it carried keeps its name.
CREATE TABLE queues (
    queue_no integer PRIMARY KEY, name text COLLATE "C" NOT NULL, owner text NOT NULL, readers text NOT NULL,
    depth bigint NOT NULL DEFAULT 0, bytes bigint NOT NULL DEFAULT 0, first bigint NOT NULL DEFAULT 1,
    next bigint NOT NULL DEFAULT 1, dropped smallint NOT NULL DEFAULT 0, ttl_s bigint NOT NULL DEFAULT 0,
    max_length bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX queues_by_name ON queues (name) WHERE dropped = 0;

CREATE TABLE bindings (
    exchange text COLLATE "C" NOT NULL, queue text COLLATE "C" NOT NULL, routing_key text COLLATE "C" NOT NULL,
    PRIMARY KEY (exchange, queue, routing_key)
);

CREATE TABLE grants (
    client text COLLATE "C" NOT NULL, "right" text COLLATE "C" NOT NULL, resource text COLLATE "C" NOT NULL,
    PRIMARY KEY (client, "right", resource)
);

-- One row for each envelope, kept after its body is gone; a partition for each month by HQ's clock.
CREATE TABLE envelopes (
    number bigint NOT NULL, sender text COLLATE "C" NOT NULL, envelope_id uuid NOT NULL, generation bigint NOT NULL,
    messages integer NOT NULL, envelope_hash bytea NOT NULL, exchange text NOT NULL, routing_key text NOT NULL,
    sealed_at bigint NOT NULL, expires_at bigint NOT NULL, accepted_at timestamptz NOT NULL,
    fan integer NOT NULL, bytes bigint NOT NULL, PRIMARY KEY (accepted_at, number)
) PARTITION BY RANGE (accepted_at);
CREATE INDEX envelopes_by_id ON envelopes (envelope_id);
CREATE INDEX envelopes_by_sender ON envelopes (sender, accepted_at);
CREATE TABLE envelopes_other PARTITION OF envelopes DEFAULT;

-- What waits, was delivered, or is a dead letter: an envelope in a queue.  state: 0 waiting, 1 delivered, 3 dead letter.
-- It moves to `deliveries` when it is acknowledged.  What a delivery needs is here, so that no join is needed for it.
CREATE TABLE entries (
    queue_no integer NOT NULL, seq bigint NOT NULL, number bigint NOT NULL, accepted_at timestamptz NOT NULL,
    state smallint NOT NULL, attempts integer NOT NULL, delivered_at timestamptz, client text NOT NULL,
    bytes bigint NOT NULL, fan integer NOT NULL, expires_at bigint NOT NULL, sender text NOT NULL,
    envelope_id uuid NOT NULL, PRIMARY KEY (queue_no, seq)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 50000);
CREATE INDEX entries_by_number ON entries (number);

-- What was acknowledged; only ever added to.
CREATE TABLE deliveries (
    accepted_at timestamptz NOT NULL, number bigint NOT NULL, queue_no integer NOT NULL, seq bigint NOT NULL,
    attempts integer NOT NULL, delivered_at timestamptz NOT NULL, acknowledged_at timestamptz NOT NULL,
    client text NOT NULL,
    PRIMARY KEY (accepted_at, number, queue_no, seq)
) PARTITION BY RANGE (accepted_at);
CREATE TABLE deliveries_other PARTITION OF deliveries DEFAULT;

-- The bytes, deleted when the last queue has acknowledged: in `data`, or in a file of the spool from `at` on.  They do not
-- compress, so PostgreSQL is told to lay them out of line as they are, in chunks.  `pending` counts the queues that have not acknowledged; it is kept for envelopes of several queues only.
CREATE TABLE bodies (
    number bigint PRIMARY KEY, pending integer NOT NULL, stored_hash bytea NOT NULL, data bytea, spool text, at bigint,
    bytes bigint NOT NULL
) WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 50000);
ALTER TABLE bodies ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX bodies_by_spool ON bodies (spool) WHERE spool IS NOT NULL;

CREATE TABLE dead_letters (
    queue_no integer NOT NULL, seq bigint NOT NULL, number bigint NOT NULL, accepted_at timestamptz NOT NULL,
    at bigint NOT NULL, reason text NOT NULL, by text NOT NULL, settled text NOT NULL DEFAULT '',
    settled_at bigint NOT NULL DEFAULT 0, settled_by text NOT NULL DEFAULT '', PRIMARY KEY (queue_no, seq)
);
CREATE INDEX dead_letters_by_number ON dead_letters (number);

CREATE TABLE senders (sender text COLLATE "C" PRIMARY KEY, highest bytea NOT NULL) WITH (fillfactor = 50);

CREATE TABLE usage (
    sender text COLLATE "C" NOT NULL, queue text COLLATE "C" NOT NULL, bytes bigint NOT NULL,
    PRIMARY KEY (sender, queue)
) WITH (fillfactor = 50);

CREATE TABLE bundles (
    client text COLLATE "C" NOT NULL, sequence bigint NOT NULL, bundle_hash bytea NOT NULL UNIQUE,
    ciphertext text NOT NULL, nonce text NOT NULL, tag text NOT NULL, added_at bigint NOT NULL, ends_at bigint NOT NULL,
    PRIMARY KEY (client, sequence)
);

CREATE TABLE enrolments (
    secret_hash bytea PRIMARY KEY, client text COLLATE "C" NOT NULL, role text NOT NULL, approve smallint NOT NULL,
    created_at bigint NOT NULL, expires_at bigint NOT NULL, state text NOT NULL, csr bytea NOT NULL,
    number text NOT NULL, chain bytea NOT NULL
);

CREATE TABLE certificates (
    serial text COLLATE "C" PRIMARY KEY, client text COLLATE "C" NOT NULL, issued_at bigint NOT NULL,
    expires_at bigint NOT NULL, revoked_at bigint NOT NULL, der bytea NOT NULL
);
CREATE INDEX certificates_by_client ON certificates (client);

-- HQ's signed log: one entry for each commit, written with it.
CREATE TABLE log (
    entry bigint PRIMARY KEY, at bigint NOT NULL, head bytea NOT NULL, signature bytea NOT NULL, body bytea NOT NULL
);

CREATE FUNCTION ms_of(at timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CAST(extract(epoch FROM at) * 1000 AS bigint);
CREATE FUNCTION message_id(envelope_id uuid, n integer) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CAST(substr(CAST(envelope_id AS text), 1, 32) || lpad(to_hex(n), 4, '0') AS uuid);
CREATE FUNCTION envelope_of(message_id uuid) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CAST(substr(CAST(message_id AS text), 1, 32) || '0000' AS uuid);

-- A dead letter whose next generation came has a second entry in its queue, and that one counts.
CREATE FUNCTION come_again(at timestamptz, n bigint, queue integer, after bigint) RETURNS boolean LANGUAGE sql STABLE
RETURN EXISTS (SELECT 1 FROM entries y WHERE y.number = n AND y.queue_no = queue AND y.seq > after)
    OR EXISTS (
        SELECT 1 FROM deliveries y WHERE y.accepted_at = at AND y.number = n AND y.queue_no = queue AND y.seq > after
    );

-- `message_lookup` is `message_metadata` with the envelope's id, which has an index; `find_message` goes that way.
CREATE VIEW message_lookup AS
SELECT
    e.envelope_id, message_id(e.envelope_id, m.n) AS message_id, e.sender AS client_id, e.exchange AS exchange_name,
    e.routing_key, e.accepted_at AS sent_time, d.delivered_time, d.acknowledged_time
FROM envelopes e
CROSS JOIN LATERAL generate_series(0, e.messages - 1) AS m (n)
LEFT JOIN LATERAL (
    SELECT CASE WHEN bool_and(x.delivered_at IS NOT NULL) THEN max(x.delivered_at) END AS delivered_time,
        CASE WHEN bool_and(x.acknowledged_at IS NOT NULL) THEN max(x.acknowledged_at) END AS acknowledged_time
    FROM (
        SELECT x.queue_no, 2 AS state, x.delivered_at, x.acknowledged_at, x.client FROM deliveries x
        WHERE x.accepted_at = e.accepted_at AND x.number = e.number
        UNION ALL
        SELECT x.queue_no, x.state, x.delivered_at, NULL, x.client FROM entries x
        WHERE x.number = e.number AND (x.state < 3 OR NOT come_again(x.accepted_at, x.number, x.queue_no, x.seq))
    ) x
) d ON true;

CREATE VIEW message_metadata AS
SELECT message_id, client_id, exchange_name, routing_key, sent_time, delivered_time, acknowledged_time
FROM message_lookup;

CREATE VIEW delivery_lookup AS
SELECT
    e.envelope_id, message_id(e.envelope_id, m.n) AS message_id, q.name AS queue_name,
    coalesce(nullif(d.client, ''), nullif(q.owner, '')) AS client_id, d.delivered_at AS delivered_time,
    d.acknowledged_at AS acknowledged_time,
    CASE d.state WHEN 0 THEN 'waiting' WHEN 1 THEN 'delivered' WHEN 2 THEN 'acknowledged' ELSE 'dead letter' END AS state
FROM envelopes e
CROSS JOIN LATERAL generate_series(0, e.messages - 1) AS m (n)
CROSS JOIN LATERAL (
    SELECT x.queue_no, 2 AS state, x.delivered_at, x.acknowledged_at, x.client FROM deliveries x
    WHERE x.accepted_at = e.accepted_at AND x.number = e.number
    UNION ALL
    SELECT x.queue_no, x.state, x.delivered_at, NULL, x.client FROM entries x
    WHERE x.number = e.number AND (x.state < 3 OR NOT come_again(x.accepted_at, x.number, x.queue_no, x.seq))
) d
JOIN queues q ON q.queue_no = d.queue_no;

CREATE VIEW message_deliveries AS
SELECT message_id, queue_name, client_id, delivered_time, acknowledged_time, state FROM delivery_lookup;

CREATE FUNCTION find_message(id uuid) RETURNS SETOF message_metadata LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT message_id, client_id, exchange_name, routing_key, sent_time, delivered_time, acknowledged_time
    FROM message_lookup WHERE envelope_id = envelope_of(id) AND message_id = id;
END;
CREATE FUNCTION find_deliveries(id uuid) RETURNS SETOF message_deliveries LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT message_id, queue_name, client_id, delivered_time, acknowledged_time, state
    FROM delivery_lookup WHERE envelope_id = envelope_of(id) AND message_id = id;
END;

-- The newest bundle of each client, in base64.
CREATE VIEW public_keys AS
SELECT client AS client_id, ciphertext AS public_key_ciphertext, nonce, tag
FROM bundles b WHERE sequence = (SELECT max(sequence) FROM bundles x WHERE x.client = b.client);
