"""Settings classes from TOML files, and back: what `config` describes its tables with.

An unknown table or key, a wrong type and a value out of range are named with file, table and key,
and what is allowed; all mistakes of a file are reported together.
"""

from __future__ import annotations

import functools
import os
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import attrs

from cipherbox.classes import frozen
from cipherbox.errors import ConfigError, Problem
from cipherbox.limits import Limits

DEFAULT_PORT = 7443

# Both ends must agree on these, or a client keeps them for itself: HQ's configuration would change
# nothing.
FIXED_LIMITS = frozenset(
    [
        *(
            "first_frame_bytes",
            "prefix_bytes",
            "recipients",
            "messages",
            "stanza_bytes",
            "rsa_bits_least",
        ),
        *(
            "rsa_bits_most",
            "message_headers",
            "header_key_bytes",
            "header_value_bytes",
            "content_type_bytes",
        ),
        *("bundle_bytes", "receipt_bytes", "name_bytes", "token_bytes"),
        *(
            "ranges_per_frame",
            "names_per_frame",
            "ack_entries",
            "watermark_ms",
            "bundles_per_answer",
        ),
        *(
            "file_from_bytes",
            "part_bytes",
            "part_bytes_most",
            "parts",
            "path_names",
            "entries",
            "parts_in_flight",
        ),
        *("batch_bytes", "batch_messages", "open_batches"),
    ]
)
HOME_VARIABLE = "CIPHERBOX_HOME"


def setting(
    default: Any, doc: str, *, choices: tuple[str, ...] = (), low: float | None = None
) -> Any:
    """Return a field of a settings class: its default, its description in the written file, and
    what is allowed.
    """
    metadata = {"doc": doc, "choices": choices, "low": low}
    return attrs.field(default=default, metadata=metadata)


@frozen
class AgentSettings:
    """Table `[agent]`."""

    settle_s: float = setting(10.0, "a file is sent when it has not changed for this long", low=0.0)
    marker: str = setting(
        "", "if set, a file is sent when a file of the same name with this suffix exists beside it"
    )
    ignore: str = setting(
        "", "patterns of names that are not sent, separated by commas, for example *.log, ~*"
    )


@frozen
class ContactSettings:
    """Table `[contacts]`; `cipherbox contacts` edits the allow and block lists."""

    tell_hq: bool = setting(
        True, "true: HQ gets the lists and refuses on your behalf; false: they stay on this machine"
    )


@frozen
class PageSettings:
    """Table `[page]`, explained on the manual page `page`."""

    listen: str = setting(
        "",
        "loopback host:port of the page, for example 127.0.0.1:8443: the agent then serves it, "
        "too; empty: `cipherbox page` alone, on a port that the system chooses",
    )
    idle_minutes: int = setting(
        15, "minutes without a click or key after which the page is locked", low=1
    )


@frozen
class InboxSettings:
    """Table `[inbox]`."""

    incoming: Path | None = setting(
        None, "where files arrive; empty: incoming/ in the home, for ~/.cipherbox in ~/CipherBox"
    )
    plain: bool = setting(
        False, "true: store received messages and files readable even if the keys have a password"
    )
    keep_days: int = setting(
        400, "days for which received messages can be shown and exported again", low=1
    )
    partial_days: int = setting(
        14, "days without a new part after which an incomplete file is dropped", low=1
    )
    rotate_bytes: int = setting(
        0, "start a new received_messages.jsonl above this size; 0: never", low=0
    )
    rotate_days: int = setting(0, "start a new one at this age in days; 0: never", low=0)


def default_home() -> Path:
    """Return ``$CIPHERBOX_HOME``, or ``.cipherbox`` in the user's home directory."""
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    if home == Path(home.anchor):  # what a container or a service has where it has none
        raise ConfigError(
            "this user has no home directory",
            remedy=f"name one: --home DIRECTORY, or {HOME_VARIABLE}",
        )
    return home / ".cipherbox"


def join_command(home: Path) -> str:
    """Return the command that creates this home; it names the home unless that is the default."""
    try:
        usual = default_home().absolute()
    except ConfigError:
        usual = None
    return "cipherbox join" if home == usual else f"cipherbox --home {shlex.quote(str(home))} join"


def read_tables(file: Path, tables: Mapping[str, type], missing: str) -> dict[str, Any]:
    """Return the settings of each table; ``missing`` is the remedy if the file does not exist."""
    try:
        document = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist", remedy=missing) from None
    except OSError as error:
        from cipherbox.portable import unreadable

        raise ConfigError(unreadable(file, error)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not text in UTF-8: {error}", remedy="write it anew or restore it"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    wrong: list[Problem] = []
    for name, value in document.items():
        if name not in tables:
            wrong.append(Problem(f"{file}: there is no table [{name}]", _nearest(name, tables)))
        elif not isinstance(value, dict):
            wrong.append(Problem(f"{file}: {name} is a table", f"write [{name}]"))
    good = {name: document[name] for name in tables if isinstance(document.get(name), dict)}
    built = {
        name: _build(file, name, kind, good.get(name, {}), wrong) for name, kind in tables.items()
    }
    if wrong:
        raise ConfigError.of(wrong)
    return built


def tables_of(file: Path) -> frozenset[str]:
    """Return the names of the tables in a file; none if the file does not exist."""
    return frozenset(tomllib.loads(file.read_text("utf-8-sig"))) if file.exists() else frozenset()


def whole_tables(file: Path, before: frozenset[str]) -> frozenset[str]:
    """Return the names of the tables in a file.  Raise ConfigError if it looks half written: cut
    within a line, or without tables it had before.

    A file that is cut between two lines is good TOML, and would quietly set the rest to its
    defaults.
    """
    text = file.read_text("utf-8-sig")
    if text and not text.endswith("\n"):
        raise ConfigError(
            f"{file} ends in the middle of a line: is it half written? End its last line"
        )
    found = tables_of(file)
    if gone := sorted(before - found):
        names = ", ".join(f"[{name}]" for name in gone)
        raise ConfigError(
            f"{file} has no {names} any more: is it half written? Leave empty tables in if you "
            "mean it"
        )
    return found


def build_table(where: str, kind: Any, values: Mapping[str, Any]) -> Any:
    """Return one table's settings, from values that do not come from a file."""
    wrong: list[Problem] = []
    built = _build(Path(where), kind.__name__.removesuffix("Settings").lower(), kind, values, wrong)
    if wrong:
        raise ConfigError.of(wrong)
    return built


# reading a file again, and each of several homes, would evaluate every annotation anew
_hints = functools.cache(get_type_hints)


def _build(
    file: Path, table: str, kind: Any, values: Mapping[str, Any], wrong: list[Problem]
) -> Any:
    """Return the table's settings.  Each invalid value is added to ``wrong`` and replaced by its
    default.
    """
    fields = {
        a.name: a for a in attrs.fields(kind) if not (kind is Limits and a.name in FIXED_LIMITS)
    }
    hints = _hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        where = f"{file}: [{table}] {key}"
        if kind is Limits and key in FIXED_LIMITS:
            wrong.append(Problem(f"{where}: this limit is fixed", "remove the line"))
        elif key not in fields:
            wrong.append(Problem(f"{file}: [{table}] has no key {key!r}", _nearest(key, fields)))
        else:
            try:
                given[key] = _value(
                    where, hints[key], fields[key].metadata, value, limit=kind is Limits
                )
            except ConfigError as error:
                wrong += error.problems
    return kind(**given)


def _value(
    where: str, hint: Any, metadata: Mapping[Any, Any], given: object, *, limit: bool
) -> Any:
    wanted: tuple[type, ...] = {bool: (bool,), int: (int,), float: (int, float)}.get(hint, (str,))
    if (
        hint == tuple[str, ...]
        and isinstance(given, list)
        and all(isinstance(one, str) for one in given)
    ):
        return tuple(given)
    if (
        hint == tuple[str, ...]
        or not isinstance(given, wanted)
        or (isinstance(given, bool) and hint is not bool)
    ):
        raise ConfigError(f"{where} is {_word(hint)}, not {given!r}")
    value: Any = given
    choices = metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{where} is one of {', '.join(choices)}, not {value!r}")
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
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text in quotes",
        tuple[str, ...]: "a list of texts in quotes",
    }
    return words.get(hint, "a path in quotes")


def _nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def write_tables(file: Path, head: str, tables: Mapping[str, Any]) -> Path:
    """Write the settings, each with its description; limits only where they differ from the
    default.
    """
    from cipherbox.portable import write_atomic

    lines = [f"# {head}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]"]
        for a in attrs.fields(type(table)):
            value = getattr(table, a.name)
            if isinstance(table, Limits) and value == a.default:
                continue
            if (
                isinstance(value, Path)
                and value.is_absolute()
                and value.is_relative_to(file.parent)
            ):
                value = value.relative_to(file.parent)
            doc = a.metadata.get("doc", "")
            lines.append(f"{a.name} = {toml_value(value)}" + (f"  # {doc}" if doc else ""))
    write_atomic(file, ("\n".join(lines) + "\n").encode())
    return file


def toml_value(value: Any) -> str:
    """Return a value in TOML's notation."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    text = "" if value is None else value.as_posix() if isinstance(value, Path) else str(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'


def parse_listen(text: str) -> list[tuple[str, int]]:
    """Return ``host:port, [v6]:port`` as pairs; port 0 lets the system choose one."""
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


def parse_origins(text: str) -> frozenset[str]:
    """Return origins as browsers send them, ``https://host[:port]``, in lower case; raise
    ConfigError for anything else.
    """
    found = [part.strip().lower() for part in text.split(",") if part.strip()]
    for origin in found:
        scheme, _, host = origin.partition("://")
        if scheme not in ("https", "http") or not host or not set("/?#@").isdisjoint(host):
            raise ConfigError(
                f"{origin!r} is no origin: https://host or https://host:port, and no path"
            )
    return frozenset(found)


def check_address(where: str, text: str) -> None:
    """Raise ConfigError unless ``text`` is host:port or wss://host:port/."""
    parts = urlsplit(text if text.startswith("wss://") else f"//{text}")
    try:
        good = (
            bool(parts.hostname)
            and parts.port is not None
            and parts.port > 0
            and not set(" \t@?#") & set(text)
        )
    except ValueError:
        good = False
    if not good or (parts.path not in ("", "/")) or (parts.path and not text.startswith("wss://")):
        raise ConfigError(f"{where}: {text!r} is no address: host:port, or wss://host:port/")


def check_loopback(where: str, text: str) -> None:
    """Raise ConfigError unless all addresses are loopback: no login is required there."""
    try:
        addresses = parse_listen(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    for host, _ in addresses:
        if host not in ("localhost", "::1") and not host.startswith("127."):
            raise ConfigError(
                f"{where}: {host} is no loopback address",
                remedy=(
                    "say 127.0.0.1, and let a proxy there ask for a password if another "
                    "machine is to read it"
                ),
            )
