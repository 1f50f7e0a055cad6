"""HQ: trio around the pure core.  It never imports code that opens envelopes.

Map, written by `make generate`:

    app               The composition root of a running HQ: lock, store, engine, listeners, and a
                      graceful stop.
    body_cache        A bounded cache of envelopes' bodies between commit and delivery, in front of
                      the store.
    ca/               HQ's certification authority: on this machine, offline, or an organization's.
    clock_guard       Decide whether HQ's clock is right or in doubt: the one owner of that verdict.
    command_queue     Commands that wait for the engine's next batch, bounded in number and bytes.
    connection/       One peer: its session, what comes in, what goes out, and how much memory it
                      may hold.
    directory/        Who is who: certificates, enrolments, key bundles, prekeys, revocation lists.
    engine            The one task that owns the broker.
    hq                HQ: composes the parts of one running HQ.
    live_config       The settings in effect.
    log_mark          A file beside HQ's store that names the newest entry of the signed log, so
                      that a start notices a store that lost commits which HQ had confirmed.
    log_statements    Statements in HQ's signed log besides commits: revocations and attested
                      restores, stored with their proofs.
    operations/       Running HQ: set-up, checks, alerts, metrics, reload, drain, backup,
                      maintenance.
    own_calls         HQ's own commands to the broker, as connection 0, and their answers.
    requests/         Frames from clients, answered: commands for the broker, and what HQ answers
                      without it.
    store_threads     Store calls in worker threads: one at a time, and reads of bodies beside them.
    transparency_log  Write HQ's signed log: one entry for each commit, a leaf of one append-only
                      tree; `envelope.transparency_log` has the format.
"""
