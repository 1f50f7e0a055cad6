"""Settings: TOML files into frozen classes, and back.

HQ has `cipherbox.toml` in its data directory, a client has `client.toml` in its home.  The classes below are the whole
truth: a table's keys are a class's fields, and what a file does not say has the field's default.

1. An unknown key, a wrong type and a value out of range are errors that name file, table and key, and what is allowed.
2. A file names secrets, it never holds them: `secret_key` reads the file a setting points to.
3. A relative path is relative to the directory of the file that holds it.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import attrs

from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import Limits, check_client_id

SERVER_FILE = "cipherbox.toml"
CLIENT_FILE = "client.toml"
HOME_VARIABLE = "CIPHERBOX_HOME"
DEFAULT_PORT = 7443

ROTATIONS = ("never", "hourly", "daily")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
ROLES = ("client", "admin")

# Both ends must agree on these, so they belong to the protocol version and not to a configuration.
FIXED_LIMITS = frozenset(
    [
        "first_frame_bytes",
        "prefix_bytes",
        "recipients",
        "messages",
        "stanza_bytes",
        "message_headers",
        "header_key_bytes",
        "header_value_bytes",
        "content_type_bytes",
        "bundle_bytes",
        "receipt_bytes",
        "name_bytes",
        "token_bytes",
    ]
)


def setting(default: Any, doc: str, *, choices: tuple[str, ...] = (), low: float | None = None) -> Any:
    """A field of a settings class: its default, its meaning for the written file, and what is allowed."""
    metadata = {"doc": doc, "choices": choices, "low": low}
    return attrs.field(default=default, metadata=metadata)


# -- HQ -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class ServerSettings:
    """Table `[server]`."""

    name: str = setting("DC-HQ", "what HQ calls itself in logs and to clients")
    listen: str = setting(f"127.0.0.1:{DEFAULT_PORT}", "host:port for TLS; several separated by commas")
    websocket_listen: str = setting("", "host:port for the same inside WebSocket; empty: none")
    address: str = setting(f"127.0.0.1:{DEFAULT_PORT}", "where clients find HQ; goes into every token")


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
    directory: Path | None = setting(None, "also write server_info.log, server_debug.log, server_error.log there")
    rotation: str = setting("daily", "when to begin new files", choices=ROTATIONS)
    largest_bytes: int = setting(100 * 1024 * 1024, "begin a new file at this size too", low=4096)
    keep: int = setting(14, "how many older files of each kind to keep", low=0)


@attrs.frozen
class DatabaseSettings:
    """Table `[database]`."""

    path: Path = setting(Path("cipherbox.sqlite3"), "the SQLite database; bodies lie in spool/ beside it")


@attrs.frozen
class EncryptionSettings:
    """Table `[encryption]`: names of files that hold 32 random bytes each."""

    database_key_file: Path = setting(Path("secrets/database.key"), "encrypts the key bundles in the database")
    service_key_file: Path = setting(Path("secrets/service.key"), "encrypts the private keys of HQ and the CA")


@attrs.frozen
class CaSettings:
    """Table `[ca]`."""

    offline: bool = setting(False, "true: the CA's keys are elsewhere, requests are carried there and back")
    root_key: Path = setting(Path("ca/root.key"), "private key of the root CA; may be taken off the machine")
    issuing_key: Path = setting(Path("ca/issuing.key"), "private key of the issuing CA")


@attrs.frozen
class ServerConfig:
    """Everything `serve` is told.  ``directory`` is HQ's data directory; all paths below it are absolute."""

    directory: Path
    server: ServerSettings = attrs.Factory(ServerSettings)
    tls: TlsSettings = attrs.Factory(TlsSettings)
    logging: LoggingSettings = attrs.Factory(LoggingSettings)
    database: DatabaseSettings = attrs.Factory(DatabaseSettings)
    encryption: EncryptionSettings = attrs.Factory(EncryptionSettings)
    ca: CaSettings = attrs.Factory(CaSettings)
    limits: Limits = attrs.Factory(Limits)

    def __attrs_post_init__(self) -> None:
        directory = self.directory.absolute()
        object.__setattr__(self, "directory", directory)
        for name in ("tls", "logging", "database", "encryption", "ca"):
            object.__setattr__(self, name, _absolute(directory, getattr(self, name)))


SERVER_TABLES: dict[str, type] = {
    "server": ServerSettings,
    "tls": TlsSettings,
    "logging": LoggingSettings,
    "database": DatabaseSettings,
    "encryption": EncryptionSettings,
    "ca": CaSettings,
    "limits": Limits,
}

# -- a client -----------------------------------------------------------------------------------------------------


@attrs.frozen
class IdentitySettings:
    """Table `[client]`."""

    client_id: str = setting("", "who this is; the certificate's common name")
    address: str = setting("", "where HQ is: host:port or wss://host:port/, several separated by commas")
    role: str = setting("client", "client, or admin", choices=ROLES)


@attrs.frozen
class RetrySettings:
    """Table `[retry]`."""

    tries: int = setting(3, "attempts before a command gives up", low=1)
    timeout_s: float = setting(10.0, "how long one attempt may take", low=0.001)
    pause_max_s: float = setting(60.0, "the longest pause before connecting again", low=0.0)


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


CLIENT_TABLES: dict[str, type] = {"client": IdentitySettings, "retry": RetrySettings}

# -- loading and writing ------------------------------------------------------------------------------------------


def load_server_config(where: Path) -> ServerConfig:
    """HQ's configuration from its data directory or from the file itself.  ConfigError says what is wrong."""
    file = where if where.is_file() else where / SERVER_FILE
    tables = _read(file, SERVER_TABLES, f"make a data directory with: cipherbox init {where}")
    config = ServerConfig(directory=file.parent, **tables)
    for key in ("listen", "websocket_listen"):
        text = getattr(config.server, key)
        try:
            addresses = parse_listen(text)
        except ConfigError as error:
            raise ConfigError(f"{file}: [server] {key}: {error}") from None
        if key == "listen" and not addresses:
            raise ConfigError(f"{file}: [server] listen: say at least one host:port")
    if not config.server.address:
        raise ConfigError(f"{file}: [server] address: say where clients find HQ, for example hq.example.org:7443")
    return config


def write_server_config(config: ServerConfig) -> Path:
    """Writes ``cipherbox.toml`` into the data directory, every setting with its meaning; returns its path."""
    head = "HQ's settings. `cipherbox manual configuration` explains them. Secrets are never in this file."
    tables = {name: getattr(config, name) for name in SERVER_TABLES}
    return _write(config.directory / SERVER_FILE, head, tables)


def default_home() -> Path:
    """``$CIPHERBOX_HOME``, or ``.cipherbox`` in the user's home directory."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path.home() / ".cipherbox"


def load_client_config(home: Path | None = None) -> ClientConfig:
    """A client's configuration from its home directory.  ConfigError says what is wrong."""
    home = (home or default_home()).absolute()
    file = home / CLIENT_FILE
    tables = _read(file, CLIENT_TABLES, "enrol first with: cipherbox join (the admin gives you a token)")
    who: IdentitySettings = tables["client"]
    retry: RetrySettings = tables["retry"]
    try:
        check_client_id(who.client_id)
    except InvalidRequest as error:
        raise ConfigError(f"{file}: [client] client_id: {error}") from None
    if not who.address:
        raise ConfigError(f"{file}: [client] address: say where HQ is, for example hq.example.org:{DEFAULT_PORT}")
    return ClientConfig(home=home, **attrs.asdict(who), **attrs.asdict(retry))


def write_client_config(config: ClientConfig) -> Path:
    """Writes ``client.toml`` into the home directory; returns its path."""
    tables = {
        name: kind(**{a.name: getattr(config, a.name) for a in attrs.fields(kind)})
        for name, kind in CLIENT_TABLES.items()
    }
    head = "This client's settings. `cipherbox manual configuration` explains them."
    return _write(config.home / CLIENT_FILE, head, tables)


def secret_key(path: Path, size: int = 32) -> bytes:
    """The secret in a file: exactly ``size`` bytes, readable by its user alone.  ConfigError otherwise."""
    from cipherbox.portable import read_private

    try:
        key: bytes = read_private(path)
    except OSError as error:
        raise ConfigError(f"{path}: the secret key cannot be read: {error.strerror or error}") from None
    if len(key) != size:
        raise ConfigError(f"{path}: a secret key has exactly {size} bytes, this file has {len(key)}")
    return key


def parse_listen(text: str) -> list[tuple[str, int]]:
    """``host:port, [v6]:port`` as pairs; empty text gives none; port 0 lets the system choose."""
    found: list[tuple[str, int]] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        host, colon, port = part.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigError(f"{part!r}: put an IPv6 address in brackets: [::1]:{DEFAULT_PORT}")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"{part!r} is not host:port with a port from 0 to 65535")
        found.append((host, int(port)))
    return found


# -- from TOML and to it ------------------------------------------------------------------------------------------


def _read(file: Path, tables: Mapping[str, type], missing: str) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    for name, value in document.items():
        if name not in tables:
            raise ConfigError(f"{file}: there is no table [{name}]{_nearest(name, tables)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: {name} is a table: write [{name}]")
    return {name: _build(file, name, kind, document.get(name, {})) for name, kind in tables.items()}


def _build(file: Path, table: str, kind: Any, values: Mapping[str, Any]) -> Any:
    fields = {a.name: a for a in attrs.fields(kind) if not (kind is Limits and a.name in FIXED_LIMITS)}
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{file}: [{table}] {key}"
        if key not in fields:
            if kind is Limits and key in FIXED_LIMITS:
                raise ConfigError(f"{where}: this bound is fixed by the protocol and cannot be set")
            raise ConfigError(f"{file}: [{table}] has no key {key!r}{_nearest(key, fields)}")
        given[key] = _value(where, hints[key], fields[key].metadata, value, limit=kind is Limits)
    return kind(**given)


def _value(where: str, hint: Any, metadata: Mapping[Any, Any], given: object, *, limit: bool) -> Any:
    wanted: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(hint, (str,))
    if not isinstance(given, wanted) or (isinstance(given, bool) and hint is not bool):
        raise ConfigError(f"{where} is {_word(hint)}, not {given!r}")
    value: Any = given
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{where} is one of {', '.join(choices)}, not {value!r}{_nearest(value, choices)}")
    low = (0.001 if hint is float else 1) if limit else metadata.get("low")
    if low is not None and not value >= low:
        raise ConfigError(f"{where} is at least {low}, not {value}")
    if hint is float:
        return float(value)
    if hint is Path or hint == Path | None:
        if not value and hint is Path:
            raise ConfigError(f"{where} is a path and cannot be empty")
        return Path(value) if value else None
    return value


def _word(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
    return words.get(hint, "a path in quotes")


def _nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are: {', '.join(known)}"


def _absolute(directory: Path, table: Any) -> Any:
    values = {a.name: getattr(table, a.name) for a in attrs.fields(type(table))}
    return attrs.evolve(table, **{name: directory / p for name, p in values.items() if isinstance(p, Path)})


def _write(file: Path, head: str, tables: Mapping[str, Any]) -> Path:
    from cipherbox.portable import write_atomic

    lines = [f"# {head}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        for a in attrs.fields(type(table)):
            value = getattr(table, a.name)
            if isinstance(table, Limits) and value == a.default:
                continue
            if isinstance(value, Path) and value.is_absolute() and value.is_relative_to(file.parent):
                value = value.relative_to(file.parent)
            doc = a.metadata.get("doc", "")
            lines.append(f"{a.name} = {_toml(value)}" + (f"  # {doc}" if doc else ""))
    write_atomic(file, ("\n".join(lines) + "\n").encode())
    return file


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = "" if value is None else value.as_posix() if isinstance(value, Path) else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
