"""HQ: trio around the pure core.  It never imports code that opens envelopes.

Map, written by `make generate`:

    app               The composition root of a running HQ: lock, store, engine, listeners, and a
                      graceful stop.
    body_cache        The bytes of envelopes between commit and delivery: a bounded cache, and the
                      store behind it.
    ca/               HQ's certification authority: on this machine, offline, or an organization's.
    command_queue     Commands that wait for the engine's next batch, bounded in number and bytes.
    connection/       One peer: its session, what comes in, what goes out, and how much memory it
                      may hold.
    directory/        Who is who: certificates, enrolments, key bundles, prekeys, revocation lists.
    engine            The one task that owns the broker.
    hq                What one running HQ is made of.
    live_config       The settings in effect.
    log_statements    What HQ puts into its signed log beside commits: revocations and an admin's
                      word, each with its proof kept.
    operations/       Running HQ: set-up, checks, alerts, metrics, reload, drain, backup,
                      maintenance.
    own_calls         What HQ itself asks of the broker, as connection 0: commands that await their
                      answer.
    requests/         Frames from clients, answered: commands for the broker, and what HQ answers
                      without it.
    store_threads     Store calls in worker threads: one at a time, and reads of bodies beside them.
    transparency_log  Makes HQ's signed log: one entry for each commit, a leaf of one append-only
                      tree; `envelope.log` has the format.
"""
