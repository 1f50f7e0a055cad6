-- What became of a dead letter that somebody looked at: '' nothing yet, 'redriven' or 'dropped'.
ALTER TABLE dead_letters ADD COLUMN settled TEXT NOT NULL DEFAULT '';
ALTER TABLE dead_letters ADD COLUMN settled_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letters ADD COLUMN settled_by TEXT NOT NULL DEFAULT '';

-- Limits of a queue; 0: none.
ALTER TABLE queues ADD COLUMN ttl_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE queues ADD COLUMN max_length INTEGER NOT NULL DEFAULT 0;
