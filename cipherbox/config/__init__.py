"""Settings: frozen classes, the TOML files they come from, and what they name.

Map, written by `make generate`:

    alerts        Table `[alerts]`: how people are notified when something needs attention.
    database_url  A database URL as people write it:
                  postgresql://user@host:port,host:port/name?schema=...&tls=...
    proxies       The route of a client's connection to HQ: direct, or through a proxy from the
                  settings or the environment.
    secret_file   Secrets that settings name: a file that only its user can read, or
                  ``credential:NAME``, a credential from systemd.
    settings      Settings: TOML files into frozen classes, and back.
    show          Settings in force, as data and as TOML.
    toml_file     Settings classes from TOML files, and back: what `config` describes its tables
                  with.
"""
