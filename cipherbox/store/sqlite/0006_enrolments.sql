-- Whether a token gives its id to another home than the one that has it; and what belongs to one id, found at once.
ALTER TABLE enrolments ADD COLUMN replaces INTEGER NOT NULL DEFAULT 0;
CREATE INDEX enrolments_by_client ON enrolments (client);
