-- An envelope's commitment to its plaintext, the same in every generation; empty in those accepted before it existed.
ALTER TABLE envelopes ADD COLUMN commitment BLOB NOT NULL DEFAULT x'';
