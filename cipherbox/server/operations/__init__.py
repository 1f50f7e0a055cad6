"""Running HQ: set-up, checks, alerts, metrics, reload, drain, backup, maintenance.

Map, written by `make generate`:

    alerts      What an admin should look at now: `cipherbox top` shows it, and the log has it when
                it begins.
    backup      Backups: everything an HQ is, in a directory, made beside a running HQ; and restores
                that prove themselves.
    check       What `serve` needs besides the settings themselves: keys that are keys, certificates
                that belong together, places that can be written.
    counting    What the engine counts: once for each batch, after its commit.
    drain       Before an upgrade: nothing new is taken, what waits goes out to the consumers that
                are there, then HQ ends.
    event_log   What the log says of envelopes: after each commit, in the words the predecessors
                used.
    gauges      What HQ is like at this moment, as samples of the table in `ops.metrics`.
    monitor     The metrics port: /metrics for Prometheus, /healthz and /readyz for a supervisor;
                plain HTTP on loopback.
    offline     HQ with its doors closed: what may be done on HQ's own machine while it does not
                serve.
    open_store  Opens the store that the configuration names.
    port_check  Ports that cannot be listened on: why, and what to do.
    reload      Settings and certificates read again while HQ runs: all or nothing, and no
                connection notices.
    setup       `init`: HQ's directory, its CA, its first admin.
    status      What figures, alerts and lists read of a running HQ.
"""
