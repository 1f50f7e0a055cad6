"""The embedded store in SQLite; a schema version is one file of SQL.

Map, written by `make generate`:

    commit     Writes one commit's changes inside an open transaction; returns the spool files it
               drops.
    copying    SQLite as the source and the target of a copy; see `cipherbox.store.copying`.
    database   The only file that knows sqlite3: opening, schema, transactions, and what its errors
               mean here.
    inspect    A look at a database from outside, also while HQ has it open; nothing is changed.
    queries    Reads: the snapshot at start, the facts of a batch, bodies, and where a message is.
    retention  What a commit drops because it is old: bounded work, in the commit's own transaction.
    shape      Whether a database has the tables its schema number promises.
    store      The SQLite store: the port's rules over one connection, the spool, and the reserve.
"""
