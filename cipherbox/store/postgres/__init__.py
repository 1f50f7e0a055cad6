"""HQ's store in PostgreSQL.

Map, written by `make generate`:

    commit       Writes one commit's changes inside an open transaction; returns the spool files it
                 drops.
    connect      Finding the PostgreSQL that can be written.
    copy_binary  PostgreSQL's binary COPY format, both ways (PostgreSQL documentation, COPY, "Binary
                 Format").
    copying      PostgreSQL as the source and the target of a copy; see `cipherbox.store.copying`.
    driver       The only file that knows pg8000: one connection, statements prepared once, COPY,
                 and what its errors mean here.
    inspect      A look at PostgreSQL from outside, also while an HQ writes there; nothing is
                 changed.
    lease        Who writes.
    pool         Sessions that read beside the writing one, kept open for the next reader.
    queries      Reads: the snapshot at start, the facts of a batch, bodies, and where a message is.
    retention    What a commit drops because it is old, in the commit's own transaction.
    schema       The schema: numbered steps, upgrades, and a partition of envelopes and deliveries
                 for each month.
    store        The PostgreSQL store: the port's rules over one writing session, a pool of reading
                 ones, and the lease.
    target       Which PostgreSQL, and how to get there.
"""
