"""Settings: TOML files into frozen classes, and back.

HQ has `cipherbox.toml` in its data directory, a client has `client.toml` in its home.  The classes
below are the whole truth: a table's keys are a class's fields, and what a file does not say has the
field's default.

1. An unknown key, a wrong type and a value out of range are errors that name file, table and key,
   and what is allowed.
2. A file names secrets, it never holds them: `secret_key` reads the file a setting points to, or
   for ``credential:NAME`` what systemd hands to the service under that name.
3. A relative path is relative to the directory of the file that holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from cipherbox.config.alerts import AlertSettings, check_alerts
from cipherbox.config.database_url import parse_hosts, parse_url
from cipherbox.config.proxies import DIRECT, LineSettings, parse_proxy
from cipherbox.config.secret_file import (
    CREDENTIAL,
    check_credential,
    is_credential,
    secret,
    secret_key,
)
from cipherbox.config.toml_file import (
    DEFAULT_PORT,
    AgentSettings,
    ContactSettings,
    InboxSettings,
    build_table,
    check_address,
    check_loopback,
    default_home,
    join_command,
    parse_listen,
    parse_origins,
    read_tables,
    setting,
    write_tables,
)
from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import Limits, check_client_id

SERVER_FILE = "cipherbox.toml"
CLIENT_FILE = "client.toml"
CLIENT_HEAD = "This client's settings. `cipherbox manual configuration` explains them."
# For those who know settings by this module alone.
__all__ = [
    "CREDENTIAL",
    "DEFAULT_PORT",
    "AgentSettings",
    "InboxSettings",
    "default_home",
    "is_credential",
    "parse_listen",
    "secret",
    "secret_key",
]

KEEP_UNTIL = ("opened", "delivered", "confirmed")
ROTATIONS = ("never", "hourly", "daily")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
ROLES = ("client", "admin")
TLS = ("verify", "unverified", "off")
BODIES = ("database", "spool")
STALE = ("warn", "refuse")
SIGNATURES = ("ed25519", "ed25519+mldsa65")

# -- HQ --------------------------------------------------------------------------------------------


@attrs.frozen
class ServerSettings:
    """Table `[server]`."""

    name: str = setting("DC-HQ", "what HQ calls itself in logs and to clients")
    listen: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "host:port for TLS; several separated by commas"
    )
    websocket_listen: str = setting("", "host:port for the same inside WebSocket; empty: none")
    websocket_origins: str = setting(
        "",
        "https://host of web pages that may connect, separated by commas; a program that is no "
        "browser names none",
    )
    address: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "where clients find HQ; goes into every token"
    )


@attrs.frozen
class TlsSettings:
    """Table `[tls]`."""

    root: Path = setting(Path("ca/root.crt"), "certificate of the root CA (PEM)")
    issuing: Path = setting(Path("ca/issuing.crt"), "certificate of the issuing CA (PEM)")
    certificate: Path = setting(Path("tls/server.crt"), "HQ's certificate (PEM)")
    key: Path = setting(Path("tls/server.key"), "its private key, encrypted under the service key")


@attrs.frozen
class LoggingSettings:
    """Table `[logging]`."""

    level: str = setting("INFO", "the least important lines to write", choices=LEVELS)
    directory: Path | None = setting(
        None, "also write server_info.log, server_debug.log, server_error.log there"
    )
    rotation: str = setting("daily", "when to begin new files", choices=ROTATIONS)
    largest_bytes: int = setting(100 * 1024 * 1024, "begin a new file at this size too", low=4096)
    keep: int = setting(14, "how many older files of each kind to keep", low=0)


@attrs.frozen
class DatabaseSettings:
    """Table `[database]`."""

    kind: str = setting("sqlite", "sqlite, or postgresql", choices=("sqlite", "postgresql"))
    path: Path = setting(
        Path("cipherbox.sqlite3"), "the SQLite database; bodies lie in spool/ beside it"
    )
    url: str = setting(
        "", "postgresql://user@host:port/name?schema=...: what it says counts before the keys below"
    )
    hosts: str = setting(
        "", "host:port of PostgreSQL, several separated by commas; the writable one is found"
    )
    name: str = setting("cipherbox", "PostgreSQL's database")
    user: str = setting("cipherbox", "PostgreSQL's user")
    password_file: Path | None = setting(None, "holds its password; credential:NAME: from systemd")
    tls: str = setting(
        "verify", "to PostgreSQL: verify, unverified (anybody may pose as it), or off", choices=TLS
    )
    tls_ca: Path | None = setting(None, "who certified PostgreSQL (PEM); empty: the system's list")
    tls_certificate: Path | None = setting(
        None, "HQ's certificate for PostgreSQL (PEM), if it asks for one"
    )
    tls_key: Path | None = setting(None, "its private key (PEM)")
    schema: str = setting("cipherbox", "PostgreSQL's schema")
    pool_size: int = setting(3, "connections HQ opens: one writes, the others read bodies", low=2)
    bodies: str = setting(
        "database",
        "where PostgreSQL's large bodies lie: database, or spool (one HQ machine only)",
        choices=BODIES,
    )


@attrs.frozen
class EncryptionSettings:
    """Table `[encryption]`: names of files, or credential:NAME, that hold 32 random bytes each."""

    database_key_file: Path = setting(
        Path("secrets/database.key"), "encrypts the key bundles in the database"
    )
    service_key_file: Path = setting(
        Path("secrets/service.key"),
        "encrypts the private keys of HQ and the CA; credential:NAME: from systemd",
    )


@attrs.frozen
class CaSettings:
    """Table `[ca]`."""

    offline: bool = setting(
        False, "true: the CA's keys are elsewhere, requests are carried there and back"
    )
    organization: bool = setting(
        False, "true: the root is an organization's own, and signs what HQ asks for"
    )
    root_key: Path = setting(
        Path("ca/root.key"), "private key of the root CA; may be taken off the machine"
    )
    issuing_key: Path = setting(Path("ca/issuing.key"), "private key of the issuing CA")
    revocation_lists: Path | None = setting(
        None,
        "revocation lists of an organization's CAs: a file, or a directory of *.crl; read again "
        "when they change",
    )
    stale_lists: str = setting(
        "warn",
        "when one of them has ended: warn, or refuse new connections until there is a newer one",
        choices=STALE,
    )


@attrs.frozen
class RetentionSettings:
    """Table `[retention]`: after how many days a record goes; 0: never.  The signed log says
    when something went.
    """

    metadata_days: int = setting(
        400, "what became of acknowledged envelopes; older ids are refused then", low=0
    )
    dead_letter_days: int = setting(0, "dead letters nobody looked at, with their bytes", low=0)
    log_days: int = setting(0, "entries of the signed log", low=0)


@attrs.frozen
class MetricsSettings:
    """Table `[metrics]`: figures for Prometheus and what a supervisor asks, over plain HTTP on
    this machine alone.
    """

    listen: str = setting(
        "", "loopback host:port of /metrics, /healthz, /readyz: 127.0.0.1:9463; empty: none"
    )
    queues: int = setting(100, "of so many queues, the deepest, each has figures of its own", low=0)
    clients: int = setting(
        20, "of so many clients, with the most bytes at HQ, each has figures of its own", low=0
    )


@attrs.frozen
class ServerConfig:
    """Everything `serve` is told.  ``directory`` is HQ's data directory; all paths below it are
    absolute.
    """

    directory: Path
    server: ServerSettings = attrs.Factory(ServerSettings)
    tls: TlsSettings = attrs.Factory(TlsSettings)
    logging: LoggingSettings = attrs.Factory(LoggingSettings)
    database: DatabaseSettings = attrs.Factory(DatabaseSettings)
    encryption: EncryptionSettings = attrs.Factory(EncryptionSettings)
    ca: CaSettings = attrs.Factory(CaSettings)
    retention: RetentionSettings = attrs.Factory(RetentionSettings)
    metrics: MetricsSettings = attrs.Factory(MetricsSettings)
    alerts: AlertSettings = attrs.Factory(AlertSettings)
    limits: Limits = attrs.Factory(Limits)
    # the file, where it is not the directory's own
    source: Path | None = attrs.field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        directory = self.directory.absolute()
        object.__setattr__(self, "directory", directory)
        for name in ("tls", "logging", "database", "encryption", "ca", "alerts"):
            object.__setattr__(self, name, _absolute(directory, getattr(self, name)))

    @property
    def file(self) -> Path:
        """Where these settings are read from."""
        return self.source or self.directory / SERVER_FILE

    @property
    def own_secrets(self) -> Path:
        """Where HQ keeps the keys it makes while it runs: beside the service key, if that is a
        file of its own.
        """
        service = self.encryption.service_key_file
        return self.directory / "secrets" if is_credential(service) else service.parent


SERVER_TABLES: dict[str, type] = {
    "server": ServerSettings,
    "tls": TlsSettings,
    "logging": LoggingSettings,
    "database": DatabaseSettings,
    "encryption": EncryptionSettings,
    "ca": CaSettings,
    "retention": RetentionSettings,
    "metrics": MetricsSettings,
    "alerts": AlertSettings,
    "limits": Limits,
}

# -- a client --------------------------------------------------------------------------------------


@attrs.frozen
class IdentitySettings:
    """Table `[client]`."""

    client_id: str = setting("", "who this is; the certificate's common name")
    address: str = setting(
        "", "where HQ is: host:port or wss://host:port/, several separated by commas"
    )
    role: str = setting("client", "client, or admin", choices=ROLES)
    password_file: Path | None = setting(
        None, "file with the password of the keys, should they be under one"
    )


@attrs.frozen
class RetrySettings:
    """Table `[retry]`."""

    tries: int = setting(3, "attempts before a command gives up", low=1)
    timeout_s: float = setting(10.0, "how long one attempt may take", low=0.001)
    pause_max_s: float = setting(60.0, "the longest pause before connecting again", low=0.0)


@attrs.frozen
class OutboxSettings:
    """Table `[outbox]`."""

    keep_until: str = setting(
        "opened",
        "what was sent stays here, to be sealed again, until it was that",
        choices=KEEP_UNTIL,
    )


@attrs.frozen
class KeySettings:
    """Table `[keys]`."""

    signatures: str = setting(
        "ed25519",
        "how this client signs, from its next `cipherbox keys rotate` on",
        choices=SIGNATURES,
    )
    keep_old_days: int = setting(
        436, "private keys that were rotated out are destroyed after so many days", low=1
    )


@attrs.frozen
class SessionTable:
    """Table `[sessions]`; the manual page `sessions` explains them."""

    max_skipped: int = setting(
        2000, "keys kept for messages of a session that did not come yet", low=0
    )
    rotation_s: int = setting(
        86_400, "a session older than this is followed by a fresh one", low=60
    )
    sessions_per_peer: int = setting(
        8, "sessions kept with each client, for what is still under way", low=2
    )
    one_time_prekeys: int = setting(
        100, "kept at HQ, each for one first contact; HQ may keep fewer", low=0
    )
    signed_prekey_s: int = setting(
        7 * 86_400, "prekeys at HQ are replaced when they are older", low=60
    )
    signed_prekey_kept_s: int = setting(
        30 * 86_400, "replaced prekeys still open what was begun before", low=60
    )


@attrs.frozen
class LogSettings:
    """Table `[log]`; the manual page `log` explains them."""

    witnesses: tuple[str, ...] = setting(
        (), "keys of witnesses, as `cipherbox witness --key` prints them"
    )
    quorum: int = setting(
        0, "a confirm counts when so many of them stand behind it; 0: HQ's word is enough", low=0
    )


@attrs.frozen
class ClientConfig:
    """Everything a client is told.  ``home`` is its directory, absolute."""

    home: Path
    client_id: str
    address: str
    role: str = "client"
    tries: int = 3
    timeout_s: float = 10.0
    pause_max_s: float = 60.0
    keep_until: str = "opened"
    password_file: Path | None = None
    signatures: str = "ed25519"
    keep_old_days: int = 436
    line: LineSettings = attrs.Factory(LineSettings)
    alerts: AlertSettings = attrs.Factory(AlertSettings)
    agent: AgentSettings = attrs.Factory(AgentSettings)
    sessions: SessionTable = attrs.Factory(SessionTable)
    inbox: InboxSettings = attrs.Factory(InboxSettings)
    contacts: ContactSettings = attrs.Factory(ContactSettings)
    log: LogSettings = attrs.Factory(LogSettings)


CLIENT_TABLES: dict[str, type] = {
    "client": IdentitySettings,
    "line": LineSettings,
    "alerts": AlertSettings,
    "retry": RetrySettings,
    "outbox": OutboxSettings,
    "keys": KeySettings,
    "agent": AgentSettings,
    "inbox": InboxSettings,
    "sessions": SessionTable,
    "log": LogSettings,
    "contacts": ContactSettings,
}

# -- loading and writing ---------------------------------------------------------------------------


def load_server_config(where: Path) -> ServerConfig:
    """HQ's configuration from its data directory or from the file itself.  ConfigError says what
    is wrong.
    """
    file = where if where.suffix == ".toml" and not where.is_dir() else where / SERVER_FILE
    missing = f"restore it, or make a new data directory with: cipherbox init {file.parent}"
    tables = read_tables(file, SERVER_TABLES, missing)
    config = ServerConfig(directory=file.parent, source=file.absolute(), **tables)
    for key, path in attrs.asdict(config.encryption).items():
        check_credential(f"{file}: [encryption] {key}", path)
    check_credential(f"{file}: [database] password_file", config.database.password_file)
    for key in ("listen", "websocket_listen"):
        text = getattr(config.server, key)
        try:
            addresses = parse_listen(text)
        except ConfigError as error:
            raise ConfigError(f"{file}: [server] {key}: {error}") from None
        if key == "listen" and not addresses:
            raise ConfigError(f"{file}: [server] listen: say at least one host:port")
    try:
        parse_origins(config.server.websocket_origins)
    except ConfigError as error:
        raise ConfigError(f"{file}: [server] websocket_origins: {error}") from None
    check_loopback(f"{file}: [metrics] listen", config.metrics.listen)
    check_alerts(file, config.alerts)
    if config.database.url:
        named = with_url(config.database, config.database.url, f"{file}: [database] url")
        config = attrs.evolve(config, database=named)
    if config.database.kind == "postgresql":
        parse_hosts(config.database.hosts)
    if not config.server.address:
        raise ConfigError(
            f"{file}: [server] address: say where clients find HQ, for example hq.example.org:7443"
        )
    return config


def with_url(
    settings: DatabaseSettings, url: str, where: str = "the database URL"
) -> DatabaseSettings:
    """The settings with what the URL says; ConfigError says what is wrong with it."""
    given = parse_url(url)
    values: dict[str, Any] = {
        k: int(v) if k == "pool_size" and v.isdigit() else v for k, v in given.items()
    }
    built = build_table(where, DatabaseSettings, values)
    return attrs.evolve(settings, **{name: getattr(built, name) for name in given})


def write_server_config(config: ServerConfig) -> Path:
    """Writes ``cipherbox.toml`` into the data directory, every setting with its meaning; returns
    its path.
    """
    head = (
        "HQ's settings. `cipherbox manual configuration` explains them. Secrets are never in this "
        "file."
    )
    tables = {name: getattr(config, name) for name in SERVER_TABLES}
    return write_tables(config.directory / SERVER_FILE, head, tables)


def load_client_config(home: Path | None = None) -> ClientConfig:
    """A client's configuration from its home directory.  ConfigError says what is wrong."""
    home = (home or default_home()).absolute()
    file = home / CLIENT_FILE
    tables = read_tables(
        file, CLIENT_TABLES, f"enrol first with: {join_command(home)} (the admin gives you a token)"
    )
    who: IdentitySettings = tables["client"]
    try:
        check_client_id(who.client_id)
    except InvalidRequest as error:
        raise ConfigError(f"{file}: [client] client_id: {error}") from None
    if not who.address:
        raise ConfigError(
            f"{file}: [client] address: say where HQ is, for example hq.example.org:{DEFAULT_PORT}"
        )
    for part in who.address.split(","):
        check_address(f"{file}: [client] address", part.strip())
    who = _absolute(home, who)
    check_credential(f"{file}: [client] password_file", who.password_file)
    line, alerts = _absolute(home, tables["line"]), _absolute(home, tables["alerts"])
    check_alerts(file, alerts)
    check_credential(f"{file}: [line] proxy_credentials_file", line.proxy_credentials_file)
    if line.proxy and line.proxy.lower() != DIRECT:
        parse_proxy(line.proxy, f"{file}: [line] proxy")
    more = (
        attrs.asdict(tables["retry"])
        | attrs.asdict(tables["outbox"])
        | attrs.asdict(tables["keys"])
    )
    return ClientConfig(
        home=home,
        **attrs.asdict(who),
        **more,
        line=line,
        alerts=alerts,
        agent=tables["agent"],
        log=tables["log"],
        contacts=tables["contacts"],
        inbox=_absolute(home, tables["inbox"]),
        sessions=tables["sessions"],
    )


def _absolute(directory: Path, table: Any) -> Any:
    values = {a.name: getattr(table, a.name) for a in attrs.fields(type(table))}
    paths = {name: p for name, p in values.items() if isinstance(p, Path) and not is_credential(p)}
    return attrs.evolve(table, **{name: directory / p for name, p in paths.items()})


def write_client_config(config: ClientConfig) -> Path:
    """Writes ``client.toml`` into the home directory; returns its path."""
    tables = {
        name: kind(
            **{a.name: getattr(getattr(config, name, config), a.name) for a in attrs.fields(kind)}
        )
        for name, kind in CLIENT_TABLES.items()
    }
    return write_tables(config.home / CLIENT_FILE, CLIENT_HEAD, tables)
