"""Back up a running HQ into a directory, and restore it with verification.

    manifest.json   the sum of each table, the newest entry of the signed log, the hash of each file
    store/          a SQLite store, whichever database HQ uses
    files/          configuration, certificates and keys

Rules:

1. A backup gets its name once it is complete and synced; before that its name ends in `.part`.
2. A restore needs a new directory and an empty database.  It succeeds only if what it wrote, read
   back, matches the manifest, every envelope matches its hash, and the signed log is complete from
   its first entry on.
3. A restored store begins a new incarnation, so clients learn that HQ may have lost what it
   confirmed after the backup.
4. All of it may be killed at any instant and run again.  Backups of one HQ exclude each other by a
   lock, so the next one knows what a killed one left: links beside the spool, and a `.part` beside
   the backup, whose name says whose it is.  A `.part` with a manifest may be the only complete
   backup and goes once there is another.  A restore writes the settings last: without them its mark
   makes the next one start anew.  A database says that it is an unfinished copy until it was
   compared, and is emptied by the next copy into it; between that and the settings of a restore,
   its incarnation is the one in the mark.  A copy that is complete already is not an error: its
   reporter may have been killed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import orjson

from cipherbox import __version__, clock
from cipherbox.config.settings import (
    SERVER_FILE,
    DatabaseSettings,
    ServerConfig,
    load_server_config,
    secret_key,
    write_server_config,
)
from cipherbox.envelope import chained_log as oldlog
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log_format
from cipherbox.errors import ConfigError, Damaged, EnvelopeError
from cipherbox.limits import LIMITS
from cipherbox.portable import (
    O_BINARY,
    PART,
    is_part,
    lock_file,
    private_dir,
    sync_directory,
    write_private,
)
from cipherbox.server.log_mark import FILE as MARK_FILE
from cipherbox.server.operations.open_store import empty_for, open_source, open_store
from cipherbox.server.operations.setup import (
    UNFINISHED,
    clear_unfinished,
    unfinished_incarnation,
    whole_or_nothing,
)
from cipherbox.server.transparency_log import KEY_FILE, Stored, load_key, read_stored
from cipherbox.store.copying import COPYING, OnProgress, Source, Sum, copy, sums_of
from cipherbox.store.port import CLOCK, INCARNATION, Store
from cipherbox.store.spool import link_directories
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE, RESERVE, SPOOL, SqliteStore
from cipherbox.store.sqlite.store import open_store as open_sqlite

FORMAT = "cipherbox-backup-1"
MANIFEST, STORE, FILES = "manifest.json", "store", "files"
BACKUP_LOCK = "backup.lock"  # in HQ's directory, held by its only backup
_LEFT_OUT = {"lock", BACKUP_LOCK, UNFINISHED, RESERVE, SPOOL, MARK_FILE, "logs"}
_SETTINGS_PART = ".restored.toml"  # the settings of a backup, until the restored HQ is whole


@attrs.frozen
class Summary:
    """The contents of a backup or a restore; ``made_at`` is in ms since 1970."""

    directory: Path
    made_at: int
    tables: dict[str, Sum]
    log_entries: int  # number of the newest
    files: list[str]
    outside: list[str]  # files in the configuration that are outside HQ's directory


def back_up(config: ServerConfig, to: Path, tell: OnProgress = lambda _, __: None) -> Summary:
    """Write a backup to ``to``, which must not exist; HQ may be running.  Raise StoreLocked during
    another backup of this HQ.
    """
    if to.exists():
        raise ConfigError(f"{to} already exists", remedy="give each backup a name of its own")
    with lock_file(config.directory / BACKUP_LOCK, f"the backup of {config.directory}"):
        for left in [*link_directories(config.directory), *unfinished_backups(config, to.parent)]:
            if not (left / MANIFEST).exists():
                shutil.rmtree(left, ignore_errors=True)
        part = private_dir(to.with_name(f"{to.name}.{secrets.token_hex(4)}{part_of(config)}"))
        try:
            done = _back_up(config, part, to, tell)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for left in unfinished_backups(config, to.parent):
            shutil.rmtree(left, ignore_errors=True)
    return done


def unfinished_backups(config: ServerConfig, directory: Path) -> list[Path]:
    """Return what killed backups of this HQ left in ``directory``, if no backup is running."""
    return sorted(directory.glob(f"*{part_of(config)}"))


def part_of(config: ServerConfig) -> str:
    """Return how the name of an unfinished backup ends: the same for each of this HQ."""
    whose = "\0".join([socket.gethostname(), str(config.directory), config.server.name])
    return f".{hashlib.sha256(whose.encode()).hexdigest()[:8]}{PART}"


def _back_up(config: ServerConfig, part: Path, to: Path, tell: OnProgress) -> Summary:
    made_at = clock.now_ms()
    with (
        closing(open_source(config)) as source,
        closing(_new_store(part / STORE)) as sink,
    ):
        tables = copy(source, sink, tell)
        newest, root = sink.last_log(), read_stored(sink)
    files = {
        name: _keep(config.directory / name, part / FILES / name) for name in _own_files(config)
    }
    outside = _outside(config)
    manifest = {
        "format": FORMAT,
        "software": __version__,
        "made_at": made_at,
        "name": config.server.name,
        "directory": str(config.directory),
        "database": config.database.kind,
        "tables": {name: list(one) for name, one in tables.items()},
        "files": files,
        "outside": outside,
        "log": newest.index if newest else 0,
        "log_root": _root(root),
    }
    _sync_directories(part)
    write_private(part / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    os.rename(part, to)
    sync_directory(to.parent)
    return Summary(to, made_at, tables, newest.index if newest else 0, sorted(files), outside)


def restore(
    backup: Path, directory: Path, database: DatabaseSettings | None, tell: OnProgress
) -> Summary:
    """Restore an HQ into a new ``directory`` and verify it; without ``database`` it uses SQLite."""
    manifest = read_manifest(backup)
    killed = unfinished_incarnation(directory)
    clear_unfinished(directory)
    if directory.exists() and any(path.name != UNFINISHED for path in directory.iterdir()):
        raise ConfigError(
            f"{directory} is not empty",
            remedy=(
                "restore into a new directory, or run the HQ that is there: cipherbox serve "
                f"{directory}"
            ),
        )
    elsewhere, new = database is not None, killed or os.urandom(16)
    with whole_or_nothing(directory, others_database=elsewhere, incarnation=new):
        config = _restore_files(backup, directory, manifest)
        config = attrs.evolve(config, database=database or DatabaseSettings())
        found = _restore_store(backup, config, manifest, new, tell)
        _sync_directories(directory)
        write_server_config(config)
    return Summary(
        directory,
        manifest["made_at"],
        found,
        manifest["log"],
        sorted(manifest["files"]),
        manifest["outside"],
    )


def _restore_files(backup: Path, directory: Path, manifest: dict[str, Any]) -> ServerConfig:
    """Copy the files but the settings, and return these: ``directory`` gets them when it is
    whole, until then it has no HQ.
    """
    for name, digest in manifest["files"].items():
        if _digest(backup / FILES / name) != digest:
            raise Damaged(f"{backup / FILES / name} was changed after the backup")
        if name != SERVER_FILE:
            _copy(backup / FILES / name, directory / name)
    part = directory / _SETTINGS_PART
    _copy(backup / FILES / SERVER_FILE, part)
    config = attrs.evolve(load_server_config(part), source=None)
    part.unlink()
    return config


def _restore_store(
    backup: Path,
    config: ServerConfig,
    manifest: dict[str, Any],
    incarnation: bytes,
    tell: OnProgress,
) -> dict[str, Sum]:
    """Copy the store and compare it; ``incarnation`` is its new one, which a restore that was
    killed may have given it already.
    """
    wanted = {name: Sum(*values) for name, values in manifest["tables"].items()}
    with (
        closing(SqliteSource(backup / STORE, DATABASE, still=True)) as source,
        closing(open_store(config, create=True)) as store,
    ):
        empty_for(store, b"restore", "restore into another schema", incarnation)
        copy(source, store, tell)
        log_key = load_key(
            config.own_secrets / KEY_FILE, secret_key(config.encryption.service_key_file)
        )
        root_found = _verify_log(store, bytes(log_key.verify_key))
    with closing(open_source(config, still=True)) as written:
        found = sums_of(written, tell)
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong or root_found != manifest["log_root"]:
        raise Damaged(
            f"the restored HQ differs from the backup in: {', '.join(wrong or ['the signed log'])}"
        )
    with closing(open_store(config)) as store:
        store.put_setting(INCARNATION, incarnation)
        store.put_setting(CLOCK, b"")  # nothing says how old a backup may be
        store.put_setting(COPYING, b"")
    return found


def copy_store(config: ServerConfig, to: ServerConfig, tell: OnProgress) -> dict[str, Sum]:
    """Copy the store to another, empty database and verify the copy; HQ must not be running.  A
    database that has the copy already is only compared.
    """
    with closing(open_store(config)):  # so that nobody else opens it
        with (
            closing(open_source(config, still=True)) as source,
            closing(open_store(to, create=True)) as store,
        ):
            if not store.get_setting(COPYING) and store.load(1).clients:
                sums = _same(source, to, tell)
            else:
                empty_for(store, b"copy")
                sums = copy(source, store, tell)
        with closing(open_source(to, still=True)) as written:
            found = sums_of(written, tell)
        wrong = [name for name in sums if found[name] != sums[name]]
        if wrong:
            raise Damaged(
                f"the copy differs from the original in: {', '.join(wrong)}; the original is "
                "unchanged"
            )
        with closing(open_store(to)) as store:
            store.put_setting(COPYING, b"")
    return sums


def _same(source: Source, to: ServerConfig, tell: OnProgress) -> dict[str, Sum]:
    """Return the sums of a store; raise ConfigError if ``to`` contains anything else."""
    sums = sums_of(source, tell)
    with closing(open_source(to, still=True)) as written:
        if sums_of(written, tell) != sums:
            raise ConfigError("the target database already contains an HQ")
    return sums


def read_manifest(backup: Path) -> dict[str, Any]:
    """Return the manifest; raise ConfigError if there is no complete backup."""
    try:
        manifest: dict[str, Any] = orjson.loads((backup / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise ConfigError(
                f"{backup} has the format {manifest['format']}, which this program cannot read"
            )
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{backup} is not a complete backup: its {MANIFEST} is missing or unreadable"
        ) from None
    return manifest


def _root(stored: Stored) -> str:
    """Return the root of the signed log's tree."""
    size = stored.last.index if stored.last is not None else 0
    return tree.RightEdge(size, stored.edge).root().hex()


def _verify_log(store: Store, key: bytes) -> str:
    """Verify all entries of the signed log and of the one before 0.6; return the tree's root."""
    before: tuple[int, bytes] | None = None
    while old := store.old_log(before[0] if before else 0, 500, 1 << 24):
        for one in old:
            try:
                head = oldlog.verify_entry(one.head, one.signature, one.body, key, before)
            except EnvelopeError as error:
                raise Damaged(f"entry {one.index} of the signed log before 0.6: {error}") from None
            before = (head.index, oldlog.head_hash(one.head, one.signature))
    edge: tree.RightEdge | None = None
    while rows := store.log(edge.size if edge is not None else 0, 500, 1 << 24):
        for row in rows:
            if edge is None:
                edge = tree.RightEdge(
                    row.index - 1, store.log_nodes(tree.edge_nodes(row.index - 1))
                )
            try:
                log_format.verify_entry(row.record, row.body, edge.size + 1)
            except EnvelopeError as error:
                raise Damaged(f"entry {row.index} of the signed log: {error}") from None
            if b"".join(edge.append(tree.leaf_hash(row.record))) != row.nodes:
                raise Damaged(
                    f"entry {row.index} of the signed log: its stored hashes do not match its tree"
                )
    return edge.root().hex() if edge is not None else _root(read_stored(store))


def _new_store(directory: Path) -> SqliteStore:
    """Create a store without a reserve: HQ never runs on it."""
    limits = attrs.evolve(LIMITS, disk_reserve_bytes=0)
    return open_sqlite(private_dir(directory), create=True, limits=limits)


def _own_files(config: ServerConfig) -> Iterator[str]:
    """Yield the files in HQ's directory, relative to it, except database and logs."""
    database = config.database.path
    for path in sorted(config.directory.rglob("*")):
        name = path.relative_to(config.directory)
        top = name.parts[0]
        is_database = path.parent == database.parent and path.name.startswith(database.name)
        logs = config.logging.directory
        is_log = logs is not None and path.is_relative_to(logs)
        if (
            path.is_file()
            and not is_database
            and not is_log
            and top not in _LEFT_OUT
            and not top.startswith("spool.")
            and not is_part(path.name)
        ):
            yield name.as_posix()


def _outside(config: ServerConfig) -> list[str]:
    tables = (config.tls, config.encryption, config.ca, config.database)
    paths = [p for table in tables for p in attrs.asdict(table).values() if isinstance(p, Path)]
    return sorted({str(p) for p in paths if not p.is_relative_to(config.directory) and p.parts})


def _keep(source: Path, target: Path) -> str:
    _copy(source, target)
    return _digest(target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its mode and dates, synced; until it is complete it is private."""
    private_dir(target.parent)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY, 0o600)
    with source.open("rb") as file, os.fdopen(fd, "wb") as copied:
        shutil.copyfileobj(file, copied)
        copied.flush()
        os.fsync(copied.fileno())
    shutil.copystat(source, target)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise Damaged(f"{path} is missing from the backup") from None


def _sync_directories(top: Path) -> None:
    """Make the names of files durable that were synced when they were written."""
    for folder in {top, *(path.parent for path in top.rglob("*"))}:
        sync_directory(folder)
