"""Running HQ: set-up, checks, alerts, metrics, reload, drain, backup, maintenance.

Map, written by `make generate`:

    alerts      Alerts: conditions that an admin should attend to, in `cipherbox top` and in the
                log.
    backup      Back up a running HQ into a directory, and restore it with verification.
    check       Check what `serve` needs besides valid settings: keys, certificates that belong
                together, writable directories.
    counting    The engine's counters, updated once per batch after its commit.
    drain       Drain, before an upgrade: accept nothing new, deliver what waits to connected
                consumers, then stop.
    event_log   The event log of envelopes, written after each commit.
    gauges      The current state of HQ as samples of the metrics in `ops.metrics`, read a few times
                a minute.
    monitor     The metrics port: /metrics for Prometheus, /healthz and /readyz for a supervisor;
                plain HTTP on loopback.
    offline     Maintenance on HQ's own machine while HQ is offline.
    open_store  Open the store that the configuration names.
    port_check  Check that HQ's ports can be bound, and say why not and what to do.
    reload      Reload settings and certificates while HQ runs: all or nothing, without dropping
                connections.
    retention   Retention: delete old records, such that a wrong clock cannot delete what is not
                old.
    setup       `init`: create HQ's directory, its CA and its first admin.
    standbys    The HQs that wait to take over from this one, as the database knows them, and since
                when.
    status      The interface through which metrics, alerts and lists read a running HQ.
"""
