"""Settings and certificates read again while HQ runs: all or nothing, and no connection notices.

Everything is read and checked first; a half-written file, or a certificate beside another key,
changes nothing.  New connections see the new certificate, those that are open stay as they are.
What only a start can change is named.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs

from cipherbox import pki
from cipherbox.config.settings import ServerConfig, load_server_config
from cipherbox.config.show import settings_values
from cipherbox.config.toml_file import whole_tables
from cipherbox.errors import CipherBoxError, ConfigError
from cipherbox.ops.logs import get_logger, setup_logging
from cipherbox.server.ca.credentials import Credentials, read_material
from cipherbox.server.directory.revocation_lists import FiledList, RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.operations.check import certificates, keys

log = get_logger(__name__)
NOW, AT_START = "now", "at the next start"
_TABLES_NOW = ("logging", "retention", "tls", "ca", "alerts")
_SETTINGS_NOW = frozenset(
    {
        ("server", "name"),
        ("server", "address"),
        ("server", "websocket_origins"),
        ("metrics", "queues"),
        ("metrics", "clients"),
    }
)


class Difference(NamedTuple):
    """One thing that is different, and when that counts."""

    name: str
    was: object
    now: object
    effect: str


class Reloaded(NamedTuple):
    """What was read, checked as a whole: taking it over cannot fail."""

    config: ServerConfig
    material: Credentials
    context: ssl.SSLContext
    lists: dict[bytes, FiledList]
    tables: frozenset[str]
    differences: list[Difference]


def load_reload(
    current: ServerConfig, tables: frozenset[str], trust: Trust, lists: RevocationLists
) -> Reloaded:
    """Return what counts now; ConfigError says what is wrong, and then nothing has changed."""
    try:
        return _read_again(current, tables, trust, lists)
    except (CipherBoxError, OSError, ValueError) as error:
        # of a file that cannot be read as what it should be
        raise ConfigError(
            f"{error}\nNothing was taken over: HQ goes on with the settings it has"
        ) from error


def _read_again(
    current: ServerConfig, tables: frozenset[str], trust: Trust, lists: RevocationLists
) -> Reloaded:
    config = load_server_config(current.file)
    now = whole_tables(current.file, tables)
    if wrong := [*keys(config), *certificates(config)]:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    material = read_material(config)
    if pki.fingerprint(material.root) != trust.root_fingerprint:
        raise ConfigError(
            f"{config.tls.root} is another root CA: no client would be let in any more, or trust HQ"
        )
    material.try_out()
    context, found = material.context(), lists.read(config, material)
    differences = [*_settings(current, config), *_certificates(trust, material)]
    if config.logging != current.logging:
        setup_logging(config.logging)  # the last that can fail
    return Reloaded(_live(current, config), material, context, found, now, differences)


def log_differences(found: list[Difference]) -> None:
    for one in found:
        extra = {"setting": one.name, "was": one.was, "now": one.now, "effect": one.effect}
        log.info("Setting read again", extra=extra)


def _live(old: ServerConfig, new: ServerConfig) -> ServerConfig:
    """The new settings where they count now, the old ones elsewhere."""
    server = attrs.evolve(old.server, name=new.server.name, address=new.server.address)
    metrics = attrs.evolve(old.metrics, queues=new.metrics.queues)
    return attrs.evolve(
        old,
        server=server,
        metrics=metrics,
        logging=new.logging,
        retention=new.retention,
        tls=new.tls,
        ca=new.ca,
        alerts=new.alerts,
    )


def _settings(old: ServerConfig, new: ServerConfig) -> Iterator[Difference]:
    before: dict[str, dict[str, Any]] = settings_values(old)
    for table, values in settings_values(new).items():
        for key, value in values.items():
            if value != before[table][key]:
                now = table in _TABLES_NOW or (table, key) in _SETTINGS_NOW
                yield Difference(
                    f"{table}.{key}", before[table][key], value, NOW if now else AT_START
                )


def _certificates(trust: Trust, material: Credentials) -> Iterator[Difference]:
    if (trust.authority is None) != (material.authority is None):
        was, now = ("here", "elsewhere") if material.authority is None else ("elsewhere", "here")
        yield Difference("the issuing CA's key", was, now, NOW)
    for name in ("server", "issuing", "root"):
        old, new = getattr(trust, name), getattr(material, name)
        if pki.der(old) != pki.der(new):
            was, now = (
                f"{pki.serial(c)}, until {c.not_valid_after_utc:%Y-%m-%d}" for c in (old, new)
            )
            yield Difference(f"certificate {name}", was, now, NOW)
