"""The embedded store in SQLite; a schema version is one file of SQL.

Map, written by `make generate`:

    commit     Write the changes of one commit in an open transaction.
    copying    SQLite as the source and the target of a copy; see `cipherbox.store.copying`.
    database   The only module that depends on sqlite3: opening, schema, transactions, translation
               of errors.
    inspect    Inspect a database without changing it, also while HQ has it open.
    queries    Reads: the snapshot at start, the facts of a batch, bodies, and traces.
    retention  Retention: delete what is old, a bounded number in each commit and in its
               transaction.
    shape      Check that a database has the tables of its schema version.
    store      The SQLite store: one connection, the spool, and the reserve.
"""
