"""Reload settings and certificates while HQ runs: all or nothing, without dropping connections.

Everything is read and checked first; an incomplete file, or a certificate with another key, changes
nothing.  New connections get the new certificate, open ones continue.  Settings that need a restart
are named.
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
_TABLES_NOW = ("logging", "retention", "clock", "tls", "ca", "alerts")
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
    """One difference, and when it takes effect."""

    name: str
    was: object
    now: object
    effect: str


class Reloaded(NamedTuple):
    """What was read and checked as a whole: putting it into effect cannot fail."""

    config: ServerConfig
    material: Credentials
    context: ssl.SSLContext
    lists: dict[bytes, FiledList]
    tables: frozenset[str]
    differences: list[Difference]


def load_reload(
    current: ServerConfig, tables: frozenset[str], trust: Trust, lists: RevocationLists
) -> Reloaded:
    """Read settings and certificates; raise ConfigError, changing nothing, if one is invalid."""
    try:
        return _read(current, tables, trust, lists)
    except (CipherBoxError, OSError, ValueError) as error:
        # a file that cannot be parsed
        raise ConfigError(f"{error}\nConfiguration unchanged") from error


def _read(
    current: ServerConfig, tables: frozenset[str], trust: Trust, lists: RevocationLists
) -> Reloaded:
    config = load_server_config(current.file)
    now = whole_tables(current.file, tables)
    if wrong := [*keys(config), *certificates(config)]:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    material = read_material(config)
    if pki.fingerprint(material.root) != trust.root_fingerprint:
        raise ConfigError(
            f"{config.tls.root} is another root CA, which no client of this HQ trusts"
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
        log.info("Setting changed", extra=extra)


def _live(old: ServerConfig, new: ServerConfig) -> ServerConfig:
    """Return the new values of settings that take effect now, the old ones of the others."""
    server = attrs.evolve(old.server, name=new.server.name, address=new.server.address)
    metrics = attrs.evolve(old.metrics, queues=new.metrics.queues)
    return attrs.evolve(
        old,
        server=server,
        metrics=metrics,
        logging=new.logging,
        retention=new.retention,
        clock=new.clock,
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
