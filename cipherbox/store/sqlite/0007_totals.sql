-- What each client has at HQ: envelopes beside bytes, dead letters with them; and what an admin allows one client.
ALTER TABLE usage ADD COLUMN envelopes INTEGER NOT NULL DEFAULT 0;
DELETE FROM usage;
INSERT INTO usage (sender, queue, bytes, envelopes)
SELECT e.sender, q.name, sum(e.bytes), count(*)
FROM queues q JOIN entries d ON d.queue_no = q.queue_no JOIN envelopes e ON e.number = d.number
WHERE q.dropped = 0 AND (d.state < 2 OR (d.state = 3
    AND EXISTS (SELECT 1 FROM dead_letters x WHERE x.queue_no = d.queue_no AND x.seq = d.seq AND x.settled = '')
    AND NOT EXISTS (SELECT 1 FROM entries y WHERE y.number = d.number AND y.queue_no = d.queue_no AND y.seq > d.seq)))
GROUP BY e.sender, q.name;
CREATE TABLE client_limits (
    client TEXT NOT NULL, what TEXT NOT NULL, most INTEGER NOT NULL, PRIMARY KEY (client, what)
) WITHOUT ROWID;
