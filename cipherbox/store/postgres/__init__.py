"""HQ's store in PostgreSQL.

Map, written by `make generate`:

    commit       Write the changes of one commit in an open transaction.
    connect      Find the writable PostgreSQL server (the primary).
    copy_binary  PostgreSQL's binary COPY format, both ways (PostgreSQL documentation, COPY, "Binary
                 Format").
    copying      PostgreSQL as the source and the target of a copy; see `cipherbox.store.copying`.
    driver       The only module that depends on pg8000: connections, prepared statements, COPY,
                 translation of errors.
    inspect      Inspect PostgreSQL without changing it, also while an HQ writes to it.
    lease        The writer's lease and fencing.
    pool         Sessions that read beside the writing one, kept open for the next reader.
    queries      Reads: the snapshot at start, the facts of a batch, bodies, and traces.
    retention    Retention: delete what is old, in the commit's own transaction.
    schema       The schema: numbered steps, upgrades, and a partition of envelopes and deliveries
                 for each month.
    store        The PostgreSQL store: one writing session, a pool of reading ones, and the lease.
    target       The PostgreSQL to use, and how to connect to it.
"""
