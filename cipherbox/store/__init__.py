"""The store: the port, and the databases behind it.

Map, written by `make generate`:

    broken     A store that breaks its promise: it drops one envelope in ten of what it says it
               committed.
    copying    Everything a store holds, as rows that do not depend on the database: what copies,
               backups and restores are made of.
    files      The seam between a store and the disk: every file a store writes goes through one
               `Files`, so that a test can make any of these calls fail, and a layer that forgets
               what was not synced can stand in for a power cut.
    log_table  The signed log as a store keeps it: one text for every store, as in `registry`.
    port       The store port: everything HQ asks of a database, and what it may rely on.
    postgres/  HQ's store in PostgreSQL.
    registry   Bundles, enrolments, certificates and settings: rare rows, each written in a
               transaction of its own.
    reserve    Disk space kept back for acks, and whether there is room for more envelopes.
    rows       Rows that both databases give alike, as the port's values.
    spool      Large bodies as files beside the database.
    sqlite/    The embedded store in SQLite; a schema version is one file of SQL.
"""
