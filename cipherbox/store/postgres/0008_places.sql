-- The entry of the signed log that says that these bytes were accepted, which goes with them to whoever they are
-- delivered to; 0: the old log, or none, says so.
ALTER TABLE bodies ADD COLUMN log_entry bigint NOT NULL DEFAULT 0;
