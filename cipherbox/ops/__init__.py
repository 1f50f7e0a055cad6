"""Operations: what keeps a running HQ observable.

logs        JSON lines on standard error and, when asked, in rotated files
log_line    a record as names and values, without secrets
journald    lines with their fields for systemd's journal
flood       many lines of one kind become one with a count
metrics     the table of what HQ counts and measures, and its counters
prometheus  the same as Prometheus reads it
systemd     READY and STOPPING
"""
