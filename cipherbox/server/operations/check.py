"""Check what `serve` needs besides valid settings: keys, certificates that belong together,
writable directories.  All problems are found in one pass, before anything is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cipherbox import clock, pki
from cipherbox.config.settings import ServerConfig, secret_key
from cipherbox.errors import CipherBoxError, ConfigError, Problem, StoreError
from cipherbox.portable import is_locked, unwritable
from cipherbox.server.ca.credentials import (
    certificates_in,
    check_answered,
    checked_issuing,
    issued,
    load_certificate,
    read_material,
)
from cipherbox.server.directory.revocation_lists import read_lists
from cipherbox.server.operations.open_store import reach
from cipherbox.server.operations.port_check import taken, wanted
from cipherbox.store.sqlite.inspect import inspect_store
from cipherbox.store.sqlite.store import RESERVE, SPOOL

LOCK = "lock"


def problems(config: ServerConfig) -> list[Problem]:
    """Return what is wrong; empty when HQ could start."""
    try:
        check_answered(config)  # files that come with the answer are not missing yet
    except ConfigError as error:
        return [*error.problems]
    found: list[Problem] = []
    for look in (keys, certificates, _expiry, _lists, _places, _database, _addresses):
        try:
            found += look(config)
        except (CipherBoxError, OSError) as error:
            found += problems_of(error)
    return list(dict.fromkeys(found))


def problems_of(error: CipherBoxError | OSError) -> tuple[Problem, ...]:
    """Return what an error says is wrong."""
    return error.problems if isinstance(error, CipherBoxError) else (Problem(str(error)),)


def _tried(*work: Callable[[], object]) -> Iterator[Problem]:
    for one in work:
        try:
            one()
        except (CipherBoxError, OSError) as error:
            yield from problems_of(error)


def keys(config: ServerConfig) -> Iterator[Problem]:
    """Yield problems of the secret keys."""
    encryption = config.encryption
    yield from _tried(
        lambda: secret_key(encryption.database_key_file),
        lambda: secret_key(encryption.service_key_file),
    )


def certificates(config: ServerConfig) -> Iterator[Problem]:
    """Yield problems of HQ's certificates and their keys, except their dates."""
    tls = config.tls
    yield from _tried(
        lambda: load_certificate(tls.root),
        lambda: load_certificate(tls.issuing),
        lambda: load_certificate(tls.certificate),
    )
    root, issuing = load_certificate(tls.root), certificates_in(tls.issuing)
    server = load_certificate(tls.certificate)
    yield from _tried(lambda: checked_issuing(issuing, root, str(tls.issuing)))
    if not issued(server, issuing[0]):
        yield Problem(f"{tls.certificate} was not issued by {tls.issuing}")
    else:
        fits = partial(pki.verify_chain, [server, *issuing], root, None, pki.SERVER)
        yield from (
            Problem(f"clients do not accept {tls.certificate}: {why.what}", why.remedy)
            for why in _tried(fits)
        )
    yield from _tried(lambda: read_material(config, settle=False))  # that the keys fit


def _expiry(config: ServerConfig) -> Iterator[Problem]:
    server = load_certificate(config.tls.certificate)
    if server.not_valid_after_utc <= clock.now():
        renews = "" if config.ca.offline else "; HQ renews it when it starts"
        yield Problem(
            f"{config.tls.certificate} expired on {server.not_valid_after_utc:%Y-%m-%d}{renews}"
        )


def _lists(config: ServerConfig) -> Iterator[Problem]:
    yield from _tried(lambda: read_lists(config, read_material(config, settle=False)))


def _database(config: ServerConfig) -> Iterator[Problem]:
    if config.database.kind == "postgresql":
        yield from _tried(lambda: reach(config))
    elif not config.database.path.exists():
        yield Problem(f"{config.database.path}: no database", "create one with: cipherbox init")
    elif not unwritable(config.database.path.parent):  # or that is the cause of SQLite's error
        yield from _tried(lambda: inspect_store(config.database.path, pages=False))


def places(config: ServerConfig) -> Iterator[Problem]:
    """Yield files and directories that HQ must write and this user cannot."""
    directories: list[Path] = [config.directory]
    files: list[Path] = [config.directory / LOCK]
    if config.logging.directory is not None:
        directories.append(config.logging.directory)
    if config.database.kind == "sqlite":
        database = config.database.path
        directories.append(database.parent)
        files += [database.with_name(database.name + end) for end in ("", "-wal", "-shm")]
        files += [database.with_name(RESERVE), database.with_name(SPOOL)]
    closed = False
    for directory in dict.fromkeys(directories):
        there = directory
        while not there.exists():
            there = there.parent
        why = (
            unwritable(there)
            if there.is_dir()
            else Problem(f"{there} is not a directory", "move it away")
        )
        closed = closed or bool(why)
        yield why
    if not closed:
        yield from (unwritable(file) for file in files if file.exists())


def require_places(config: ServerConfig) -> None:
    """Raise StoreError, naming everything that is not writable, before anything is written."""
    try:
        wrong = [problem for problem in places(config) if problem]
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from None
    if wrong:
        raise StoreError(
            "; ".join(problem.what for problem in wrong),
            remedy="; ".join(dict.fromkeys(p.remedy for p in wrong if p.remedy)) or None,
        )


def _places(config: ServerConfig) -> Iterator[Problem]:
    return filter(None, places(config))


def _addresses(config: ServerConfig) -> Iterator[Problem]:
    if is_locked(config.directory / LOCK):
        return  # HQ is running and uses its addresses itself
    for setting, host, port in wanted(config):
        if why := taken(host, port):
            yield Problem(f"{setting}: {why.what}", why.remedy)
