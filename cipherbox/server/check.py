"""What `serve` needs besides the settings themselves: keys that are keys, certificates that belong together, places
that can be written.  Every mistake is found in one go, before anything is started."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cipherbox import pki
from cipherbox.config import ServerConfig, parse_listen, secret_key
from cipherbox.errors import CipherBoxError, ConfigError, StoreLocked
from cipherbox.portable import lock_file
from cipherbox.server.lists import read_lists
from cipherbox.server.material import (
    certificates_in,
    check_answered,
    checked_issuing,
    issued,
    load_certificate,
    read_material,
)
from cipherbox.server.storing import reach

LOCK = "lock"


def problems(config: ServerConfig) -> list[str]:
    """What is wrong, a text each; empty when HQ could start."""
    found: list[str] = []
    for look in (keys, certificates, _places, _addresses):
        try:
            found += look(config)
        except (CipherBoxError, OSError) as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _tried(*work: Callable[[], object]) -> Iterator[str]:
    for one in work:
        try:
            one()
        except (CipherBoxError, OSError) as error:
            yield str(error)


def keys(config: ServerConfig) -> Iterator[str]:
    """What is wrong with the secret keys."""
    encryption = config.encryption
    yield from _tried(
        lambda: secret_key(encryption.database_key_file), lambda: secret_key(encryption.service_key_file)
    )


def certificates(config: ServerConfig) -> Iterator[str]:
    """What is wrong with HQ's certificates and their keys."""
    tls = config.tls
    check_answered(config)
    yield from _tried(
        lambda: load_certificate(tls.root), lambda: load_certificate(tls.issuing),
        lambda: load_certificate(tls.certificate),
    )  # fmt: skip
    root, issuing = load_certificate(tls.root), certificates_in(tls.issuing)
    server = load_certificate(tls.certificate)
    yield from _tried(lambda: checked_issuing(issuing, root, str(tls.issuing)))
    if not issued(server, issuing[0]):
        yield f"{tls.certificate} was not issued by {tls.issuing}"
    if server.not_valid_after_utc <= pki.now():
        renews = "" if config.ca.offline else "; HQ renews it when it starts"
        yield f"{tls.certificate} ended on {server.not_valid_after_utc:%Y-%m-%d}{renews}"
    yield from _tried(lambda: read_lists(config, read_material(config, settle=False)))


def _places(config: ServerConfig) -> Iterator[str]:
    if config.database.kind == "postgresql":
        yield from _tried(lambda: reach(config))
    elif not config.database.path.exists():
        yield f"{config.database.path}: there is no database; make one with: cipherbox init"
    for path in filter(None, [config.directory, config.logging.directory]):
        there: Path = path
        while not there.exists():
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK):
            yield f"{path} cannot be written"


def _addresses(config: ServerConfig) -> Iterator[str]:
    try:
        with lock_file(config.directory / LOCK, "HQ's directory"):
            pass
    except StoreLocked:
        return  # HQ runs on it: its addresses are taken, by itself
    texts = {
        "[server] listen": config.server.listen, "[server] websocket_listen": config.server.websocket_listen,
        "[metrics] listen": config.metrics.listen,
    }  # fmt: skip
    for setting, host, port in [(name, *pair) for name, text in texts.items() for pair in parse_listen(text)]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                yield str(ConfigError(f"{setting}: {host}:{port}: {error.strerror or error}"))
