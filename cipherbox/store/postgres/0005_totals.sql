-- What each client has at HQ: envelopes beside bytes, dead letters with them; and what an admin allows one client.
ALTER TABLE usage ADD COLUMN envelopes bigint NOT NULL DEFAULT 0;
DELETE FROM usage;
INSERT INTO usage (sender, queue, bytes, envelopes)
SELECT d.sender, q.name, sum(d.bytes), count(*)
FROM queues q JOIN entries d ON d.queue_no = q.queue_no
WHERE q.dropped = 0 AND (d.state < 2 OR (d.state = 3
    AND EXISTS (SELECT 1 FROM dead_letters x WHERE x.queue_no = d.queue_no AND x.seq = d.seq AND x.settled = '')
    AND NOT EXISTS (SELECT 1 FROM entries y WHERE y.number = d.number AND y.queue_no = d.queue_no AND y.seq > d.seq)
    AND NOT EXISTS (SELECT 1 FROM deliveries y WHERE y.accepted_at = d.accepted_at AND y.number = d.number
        AND y.queue_no = d.queue_no AND y.seq > d.seq)))
GROUP BY d.sender, q.name;
CREATE TABLE client_limits (
    client text COLLATE "C" NOT NULL, what text COLLATE "C" NOT NULL, most bigint NOT NULL, PRIMARY KEY (client, what)
);
