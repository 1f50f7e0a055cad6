"""Settings: TOML files into frozen classes, and back.

HQ has `cipherbox.toml` in its data directory, a client has `client.toml` in its home.  The classes
below define every setting: a table's keys are a class's fields, and a key that is absent from the
file has the field's default.

1. An unknown key, a wrong type and a value out of range are errors that name file, table and key,
   and what is allowed.
2. A file names secrets and never contains them: `secret_key` reads the file that a setting names,
   or for ``credential:NAME`` systemd's credential of that name.
3. A relative path is relative to the directory of its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from cipherbox.classes import frozen
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
    PageSettings,
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
# Re-exported for callers that import settings from this module.
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


@frozen
class ServerSettings:
    """Table `[server]`."""

    name: str = setting("DC-HQ", "HQ's name, in logs and for clients")
    listen: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "host:port for TLS; separate several with commas"
    )
    websocket_listen: str = setting("", "host:port for WebSocket inside TLS; empty: none")
    websocket_origins: str = setting(
        "",
        "origins of web pages that may connect (https://host), separated by commas; "
        "programs other than browsers send none",
    )
    address: str = setting(
        f"127.0.0.1:{DEFAULT_PORT}", "where clients reach HQ; part of every token"
    )


@frozen
class TlsSettings:
    """Table `[tls]`."""

    root: Path = setting(Path("ca/root.crt"), "certificate of the root CA (PEM)")
    issuing: Path = setting(Path("ca/issuing.crt"), "certificate of the issuing CA (PEM)")
    certificate: Path = setting(Path("tls/server.crt"), "HQ's certificate (PEM)")
    key: Path = setting(Path("tls/server.key"), "its private key, encrypted under the service key")


@frozen
class LoggingSettings:
    """Table `[logging]`."""

    level: str = setting("INFO", "lowest level to write", choices=LEVELS)
    directory: Path | None = setting(
        None, "also write server_info.log, server_debug.log and server_error.log to this directory"
    )
    rotation: str = setting("daily", "when to start new files", choices=ROTATIONS)
    largest_bytes: int = setting(100 * 1024 * 1024, "also start a new file at this size", low=4096)
    keep: int = setting(14, "number of older files of each kind to keep", low=0)


@frozen
class DatabaseSettings:
    """Table `[database]`."""

    kind: str = setting("sqlite", "the kind of database", choices=("sqlite", "postgresql"))
    path: Path = setting(
        Path("cipherbox.sqlite3"), "the SQLite database; large bodies are in spool/ beside it"
    )
    url: str = setting(
        "", "postgresql://user@host:port/name?schema=...; takes precedence over the keys below"
    )
    hosts: str = setting(
        "", "host:port of PostgreSQL; separate several with commas; the writable one is used"
    )
    name: str = setting("cipherbox", "name of the PostgreSQL database")
    user: str = setting("cipherbox", "PostgreSQL user")
    password_file: Path | None = setting(
        None, "file with that user's password; credential:NAME: from systemd"
    )
    tls: str = setting(
        "verify",
        "TLS to PostgreSQL: verify, unverified (anyone can impersonate it), or off",
        choices=TLS,
    )
    tls_ca: Path | None = setting(
        None, "CA certificates for PostgreSQL (PEM); empty: the system's trust store"
    )
    tls_certificate: Path | None = setting(
        None, "HQ's client certificate for PostgreSQL (PEM), if required"
    )
    tls_key: Path | None = setting(None, "its private key (PEM)")
    schema: str = setting("cipherbox", "PostgreSQL schema")
    pool_size: int = setting(3, "number of connections: one writes, the others read bodies", low=2)
    bodies: str = setting(
        "database",
        "where large bodies are stored with PostgreSQL: database, or spool (one HQ machine only)",
        choices=BODIES,
    )


@frozen
class EncryptionSettings:
    """Table `[encryption]`: files, or credential:NAME, that contain 32 random bytes each."""

    database_key_file: Path = setting(
        Path("secrets/database.key"), "encrypts the key bundles in the database"
    )
    service_key_file: Path = setting(
        Path("secrets/service.key"),
        "encrypts the private keys of HQ and the CA; credential:NAME: from systemd",
    )


@frozen
class CaSettings:
    """Table `[ca]`."""

    offline: bool = setting(
        False, "true: the CA's keys are kept elsewhere; requests and responses are carried as files"
    )
    organization: bool = setting(
        False, "true: an organization's CA is the root and signs HQ's requests"
    )
    root_key: Path = setting(
        Path("ca/root.key"), "private key of the root CA; may be kept off the machine"
    )
    issuing_key: Path = setting(Path("ca/issuing.key"), "private key of the issuing CA")
    revocation_lists: Path | None = setting(
        None,
        "revocation lists of an organization's CAs: a file, or a directory of *.crl; "
        "reread when they change",
    )
    stale_lists: str = setting(
        "warn",
        "when one of them has expired: warn, or refuse new connections until a newer "
        "one is available",
        choices=STALE,
    )


@frozen
class RetentionSettings:
    """Table `[retention]`: the days after which records are deleted; 0: never.  Deletions are
    recorded in the signed log.
    """

    metadata_days: int = setting(
        400, "days to keep records of acknowledged envelopes; older ids are refused", low=0
    )
    dead_letter_days: int = setting(
        0, "days to keep unhandled dead letters, with their bytes; 0: forever", low=0
    )
    log_days: int = setting(0, "days to keep entries of the signed log; 0: forever", low=0)


@frozen
class ClockSettings:
    """Table `[clock]`: when HQ doubts its machine's clock (page `clocks`)."""

    step_s: int = setting(
        3600, "seconds by which the clock may differ from the time that HQ expects", low=60
    )
    stopped_days: int = setting(
        7,
        "days by which the clock may be ahead of HQ's newest record at a start after a reboot; "
        "0: any number",
        low=0,
    )


@frozen
class MetricsSettings:
    """Table `[metrics]`: metrics for Prometheus and health checks, over plain HTTP on loopback
    only.
    """

    listen: str = setting(
        "",
        "loopback host:port for /metrics, /healthz and /readyz, for example "
        "127.0.0.1:9463; empty: none",
    )
    queues: int = setting(100, "number of queues, the deepest, with metrics of their own", low=0)
    clients: int = setting(
        20, "number of clients, those with the most bytes at HQ, with metrics of their own", low=0
    )


@frozen
class ServerConfig:
    """All settings of HQ.  ``directory`` is HQ's data directory; all paths are absolute."""

    directory: Path
    server: ServerSettings = attrs.Factory(ServerSettings)
    tls: TlsSettings = attrs.Factory(TlsSettings)
    logging: LoggingSettings = attrs.Factory(LoggingSettings)
    database: DatabaseSettings = attrs.Factory(DatabaseSettings)
    encryption: EncryptionSettings = attrs.Factory(EncryptionSettings)
    ca: CaSettings = attrs.Factory(CaSettings)
    retention: RetentionSettings = attrs.Factory(RetentionSettings)
    clock: ClockSettings = attrs.Factory(ClockSettings)
    metrics: MetricsSettings = attrs.Factory(MetricsSettings)
    alerts: AlertSettings = attrs.Factory(AlertSettings)
    limits: Limits = attrs.Factory(Limits)
    # the settings file, if it is not the one in the directory
    source: Path | None = attrs.field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        directory = self.directory.absolute()
        object.__setattr__(self, "directory", directory)
        for name in ("tls", "logging", "database", "encryption", "ca", "alerts"):
            object.__setattr__(self, name, _absolute(directory, getattr(self, name)))

    @property
    def file(self) -> Path:
        """Return the file these settings are read from."""
        return self.source or self.directory / SERVER_FILE

    @property
    def own_secrets(self) -> Path:
        """Return the directory of keys that HQ generates while it runs: the service key's, if
        that key is a file.
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
    "clock": ClockSettings,
    "metrics": MetricsSettings,
    "alerts": AlertSettings,
    "limits": Limits,
}

# -- a client --------------------------------------------------------------------------------------


@frozen
class IdentitySettings:
    """Table `[client]`."""

    client_id: str = setting("", "this client's id; the common name of its certificate")
    address: str = setting(
        "", "HQ's address: host:port or wss://host:port/; separate several with commas"
    )
    role: str = setting("client", "this client's role", choices=ROLES)
    password_file: Path | None = setting(
        None, "file with the password of the keys, if they have one; credential:NAME: from systemd"
    )


@frozen
class RetrySettings:
    """Table `[retry]`."""

    tries: int = setting(3, "attempts before a command gives up", low=1)
    timeout_s: float = setting(10.0, "timeout of one attempt", low=0.001)
    pause_max_s: float = setting(60.0, "longest back-off before reconnecting", low=0.0)


@frozen
class OutboxSettings:
    """Table `[outbox]`."""

    keep_until: str = setting(
        "opened",
        "state until which envelopes are kept for resealing",
        choices=KEEP_UNTIL,
    )


@frozen
class KeySettings:
    """Table `[keys]`."""

    signatures: str = setting(
        "ed25519",
        "signature algorithms, effective from the next `cipherbox keys rotate`",
        choices=SIGNATURES,
    )
    keep_old_days: int = setting(436, "days after which rotated private keys are destroyed", low=1)


@frozen
class SessionTable:
    """Table `[sessions]`, explained on the manual page `sessions`."""

    max_skipped: int = setting(
        2000, "message keys kept for a session's messages that have not arrived yet", low=0
    )
    rotation_s: int = setting(86_400, "a session older than this is replaced by a new one", low=60)
    sessions_per_peer: int = setting(
        8, "sessions kept with each client, for messages still in transit", low=2
    )
    one_time_prekeys: int = setting(
        100, "one-time prekeys kept at HQ, each for one first contact; HQ may keep fewer", low=0
    )
    signed_prekey_s: int = setting(
        7 * 86_400, "age at which the signed prekey at HQ is replaced", low=60
    )
    signed_prekey_kept_s: int = setting(
        30 * 86_400, "how long a replaced prekey still opens sessions begun before", low=60
    )


@frozen
class LogSettings:
    """Table `[log]`, explained on the manual page `log`."""

    witnesses: tuple[str, ...] = setting(
        (), "public keys of witnesses, as `cipherbox witness --key` prints them"
    )
    quorum: int = setting(
        0,
        "number of witnesses that must cosign before a confirm counts; 0: HQ's signature is enough",
        low=0,
    )


@frozen
class ClientConfig:
    """All settings of a client.  ``home`` is its directory, absolute."""

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
    page: PageSettings = attrs.Factory(PageSettings)
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
    "page": PageSettings,
}

# -- loading and writing ---------------------------------------------------------------------------


def load_server_config(where: Path) -> ServerConfig:
    """Return HQ's configuration, read from its data directory or from the file itself; raise
    ConfigError if it is invalid.
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
            raise ConfigError(f"{file}: [server] listen: at least one host:port is required")
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
            f"{file}: [server] address: clients need HQ's address, for example hq.example.org:7443"
        )
    return config


def with_url(
    settings: DatabaseSettings, url: str, where: str = "the database URL"
) -> DatabaseSettings:
    """Return the settings with those the URL contains; raise ConfigError if it is invalid."""
    given = parse_url(url)
    values: dict[str, Any] = {
        k: int(v) if k == "pool_size" and v.isdigit() else v for k, v in given.items()
    }
    built = build_table(where, DatabaseSettings, values)
    return attrs.evolve(settings, **{name: getattr(built, name) for name in given})


def write_server_config(config: ServerConfig) -> Path:
    """Write ``cipherbox.toml`` into the data directory, every setting with its meaning; return
    its path.
    """
    head = (
        "HQ's settings. `cipherbox manual configuration` explains them. Secrets are never in this "
        "file."
    )
    tables = {name: getattr(config, name) for name in SERVER_TABLES}
    return write_tables(config.directory / SERVER_FILE, head, tables)


def load_client_config(home: Path | None = None) -> ClientConfig:
    """Return a client's configuration, read from its home; raise ConfigError if it is invalid."""
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
            f"{file}: [client] address: set HQ's address, for example hq.example.org:{DEFAULT_PORT}"
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
    check_loopback(f"{file}: [page] listen", tables["page"].listen)
    if len(parse_listen(tables["page"].listen)) > 1:
        raise ConfigError(f"{file}: [page] listen: one address, not several")
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
        page=tables["page"],
    )


def _absolute(directory: Path, table: Any) -> Any:
    values = {a.name: getattr(table, a.name) for a in attrs.fields(type(table))}
    paths = {name: p for name, p in values.items() if isinstance(p, Path) and not is_credential(p)}
    return attrs.evolve(table, **{name: directory / p for name, p in paths.items()})


def write_client_config(config: ClientConfig) -> Path:
    """Write ``client.toml`` into the home directory; return its path."""
    tables = {
        name: kind(
            **{a.name: getattr(getattr(config, name, config), a.name) for a in attrs.fields(kind)}
        )
        for name, kind in CLIENT_TABLES.items()
    }
    return write_tables(config.home / CLIENT_FILE, CLIENT_HEAD, tables)
