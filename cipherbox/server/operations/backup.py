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
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import orjson

from cipherbox import __version__, clock
from cipherbox.config.settings import (
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
from cipherbox.portable import private_dir, sync_directory, write_private
from cipherbox.server.operations.open_store import open_source, open_store
from cipherbox.server.transparency_log import KEY_FILE, Stored, load_key, read_stored
from cipherbox.store.copying import COPYING, OnProgress, Sum, copy, sums_of
from cipherbox.store.port import INCARNATION, Store
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE, RESERVE, SPOOL
from cipherbox.store.sqlite.store import open_store as open_sqlite

FORMAT = "cipherbox-backup-1"
MANIFEST, STORE, FILES = "manifest.json", "store", "files"
_LEFT_OUT = {"lock", RESERVE, SPOOL, "logs"}


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
    """Write a backup to ``to``, which must not exist; HQ may be running."""
    if to.exists():
        raise ConfigError(f"{to} already exists", remedy="give each backup a name of its own")
    part = to.with_name(f"{to.name}.{secrets.token_hex(4)}.part")
    private_dir(part)
    try:
        made_at = clock.now_ms()
        with (
            closing(open_source(config)) as source,
            closing(_sqlite(part / STORE, create=True)) as sink,
        ):
            tables = copy(source, sink, tell)
            newest, root = sink.last_log(), read_stored(sink)
        (part / STORE / RESERVE).unlink(missing_ok=True)
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
        write_private(part / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        _sync_tree(part)
        os.rename(part, to)
        sync_directory(to.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Summary(to, made_at, tables, newest.index if newest else 0, sorted(files), outside)


def restore(
    backup: Path, directory: Path, database: DatabaseSettings | None, tell: OnProgress
) -> Summary:
    """Restore an HQ into a new ``directory`` and verify it; without ``database`` it uses SQLite."""
    manifest = read_manifest(backup)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty", remedy="restore into a new directory")
    try:
        return _restore(backup, directory, database, manifest, tell)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # it was empty before
        raise


def _restore(
    backup: Path,
    directory: Path,
    database: DatabaseSettings | None,
    manifest: dict[str, Any],
    tell: OnProgress,
) -> Summary:
    for name, digest in manifest["files"].items():
        if _digest(backup / FILES / name) != digest:
            raise Damaged(f"{backup / FILES / name} was changed after the backup")
        private_dir((directory / name).parent)
        shutil.copy2(backup / FILES / name, directory / name)
    config = load_server_config(directory)
    config = attrs.evolve(config, database=database or DatabaseSettings())
    write_server_config(config)
    wanted = {name: Sum(*values) for name, values in manifest["tables"].items()}
    with (
        closing(SqliteSource(backup / STORE, DATABASE)) as source,
        closing(open_store(config, create=True)) as store,
    ):
        if store.load(1).clients:
            raise ConfigError(
                "this database already contains an HQ", remedy="restore into another schema"
            )
        store.put_setting(COPYING, b"restore")
        copy(source, store, tell)
        log_key = load_key(
            config.own_secrets / KEY_FILE, secret_key(config.encryption.service_key_file)
        )
        root_found = _verify_log(store, bytes(log_key.verify_key))
    with closing(open_source(config)) as written:
        found = sums_of(written, tell)
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong or root_found != manifest["log_root"]:
        raise Damaged(
            f"the restored HQ differs from the backup in: {', '.join(wrong or ['the signed log'])}"
        )
    with closing(open_store(config)) as store:
        store.put_setting(INCARNATION, os.urandom(16))
        store.put_setting(COPYING, b"")
    return Summary(
        directory,
        manifest["made_at"],
        found,
        manifest["log"],
        sorted(manifest["files"]),
        manifest["outside"],
    )


def copy_store(config: ServerConfig, to: ServerConfig, tell: OnProgress) -> dict[str, Sum]:
    """Copy the store to another, empty database and verify the copy; HQ must not be running."""
    with closing(open_store(config)):  # so that nobody else opens it
        with closing(open_source(config)) as source, closing(open_store(to, create=True)) as store:
            if store.load(1).clients:
                raise ConfigError("the target database already contains an HQ")
            store.put_setting(COPYING, b"copy")
            sums = copy(source, store, tell)
        with closing(open_source(to)) as written:
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


def _sqlite(directory: Path, *, create: bool) -> Any:
    private_dir(directory)
    return open_sqlite(directory, create=create)


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
        ):
            yield name.as_posix()


def _outside(config: ServerConfig) -> list[str]:
    tables = (config.tls, config.encryption, config.ca, config.database)
    paths = [p for table in tables for p in attrs.asdict(table).values() if isinstance(p, Path)]
    return sorted({str(p) for p in paths if not p.is_relative_to(config.directory) and p.parts})


def _keep(source: Path, target: Path) -> str:
    private_dir(target.parent)
    shutil.copy2(source, target)
    return _digest(target)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise Damaged(f"{path} is missing from the backup") from None


def _sync_tree(top: Path) -> None:
    for path in top.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        else:
            sync_directory(path)
