"""Operations: what keeps a running HQ observable.

Map, written by `make generate`:

    flood       A flood of lines becomes one line with a count, also when nothing comes after it.
    journald    Lines for systemd's journal with their fields, by its native protocol: one datagram
                for each line.
    log_line    A log record as names and values, without what must not be in a log.
    logs        Structured logs: one JSON object per line, made for machines and still readable.
    metrics     What HQ counts and measures, in one table: name, kind, labels, help.
    prometheus  Samples as Prometheus reads them, by the official client and a registry of its own
                for each answer.
    systemd     The service manager's side of a service: news to it (sd_notify), its watchdog, and
                sockets it listens on for us.
    unpack      How the one file unpacks itself.
"""
