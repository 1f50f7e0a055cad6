"""Operations: what keeps a running HQ observable.

Map, written by `make generate`:

    flood       Rate limit of log lines: a flood becomes one line with a count, even if no line
                follows it.
    journald    Log lines with their fields for systemd's journal, in its native protocol: one
                datagram per line.
    log_line    A log record as names and values, without secrets.
    logs        Structured logs: one JSON object per line, made for machines and still readable.
    metrics     HQ's metrics in one table: name, kind, labels, help.
    prometheus  Samples in Prometheus's formats, written by the official client from a registry per
                response.
    systemd     systemd's interface to a service: notifications (sd_notify), the watchdog and socket
                activation.
    unpack      Unpacking of the one file.
"""
