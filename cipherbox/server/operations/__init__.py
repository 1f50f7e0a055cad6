"""Running HQ: set-up, checks, alerts, metrics, reload, drain, backup, maintenance."""
