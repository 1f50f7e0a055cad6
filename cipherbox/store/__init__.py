"""The store: the port, and the databases behind it.

Map, written by `make generate`:

    broken     A broken store, which loses one in ten of the envelopes it reports as committed.
    copying    Copying a store: its contents as rows that do not depend on the database, for copies,
               backups and restores.
    files      The interface between a store and the disk: a store writes every file through one
               `Files`, so that a test can make any of these calls fail, or simulate a power cut by
               discarding what was not synced.
    log_table  The table of the signed log: the same statements for all stores, as in `registry`.
    port       The store port: what HQ requires of a database, and what it may rely on.
    postgres/  HQ's store in PostgreSQL.
    registry   Bundles, enrolments, certificates and settings: rare rows, each written in a
               transaction of its own.
    reserve    The disk reserve for acks, and whether there is room for more envelopes.
    rows       Rows that are the same in both databases, as the port's values.
    spool      The spool: large bodies in files beside the database.
    sqlite/    The embedded store in SQLite; a schema version is one file of SQL.
    waiting    The session of an HQ that waits as a standby: its latest attempt's, open until the
               next has one.
"""
