"""`backup`, `restore` and `store`: back up, restore, copy and upgrade HQ's store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox import clock
from cipherbox.cli.options import HQ_DIRECTORY, database_settings, json_option

if TYPE_CHECKING:
    from cipherbox.config.settings import ServerConfig
    from cipherbox.server.operations.backup import Summary


@contextmanager
def progress(*, silent: bool) -> Iterator[Callable[[str, int], None]]:
    """Show a progress line on a terminal."""
    shown = sys.stderr.isatty() and not silent

    def tell(table: str, rows: int) -> None:
        if shown:
            print(f"\r\x1b[K{table}: {rows:,}", end="", file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@click.command()
@click.argument("directory", type=HQ_DIRECTORY)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="A new directory. [default: DIRECTORY-backup-TIME, beside it]",
)
@json_option
def backup(directory: Path, to: Path | None, as_json: bool) -> None:
    """Back up the HQ in DIRECTORY: its store, configuration, certificates and keys. HQ may be
    running.

    The backup is a directory that only its owner can read. It contains HQ's secrets: protect it
    accordingly.
    """
    from cipherbox.cli.output import next_step, say, warn
    from cipherbox.config.settings import load_server_config
    from cipherbox.server.operations.backup import back_up

    config = load_server_config(directory)
    now = clock.now().strftime("%Y%m%dT%H%M%SZ")
    to = to or config.directory.with_name(f"{config.directory.name}-backup-{now}")
    with progress(silent=as_json) as tell:
        done = back_up(config, to.absolute(), tell)
    _report(done, as_json)
    if not as_json:
        say(f"Backup: {done.directory}")
        for name in done.outside:
            warn(f"Not in the backup, because it is not in {config.directory}: {name}")
        next_step(f"try it now and then: cipherbox restore {done.directory} /new/directory")


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@click.argument("directory", type=HQ_DIRECTORY)
@click.option(
    "--database",
    "url",
    default="",
    metavar="URL",
    help="Into PostgreSQL. [default: SQLite in DIRECTORY]",
)
@json_option
def restore(backup: Path, directory: Path, url: str, as_json: bool) -> None:
    """Restore an HQ from BACKUP into the new DIRECTORY.

    It succeeds when everything it wrote was read back and matches the backup: each table by count
    and digest, each envelope by its hash, the signed log from its first entry to its last.
    """
    from cipherbox.cli.output import next_step, say, time_text
    from cipherbox.server.operations.backup import restore as bring_back

    with progress(silent=as_json) as tell:
        done = bring_back(
            backup.absolute(), directory.absolute(), database_settings(url) if url else None, tell
        )
    _report(done, as_json)
    if not as_json:
        when = time_text(done.made_at)
        say(f"Restored and compared: HQ is in {done.directory} as it was at {when}.")
        say(
            "Messages confirmed later are missing. Senders learn this when they connect, and "
            "resend everything without"
        )
        say(
            "a signed receipt; recipients discard duplicates. Clients enrolled or revoked since "
            "then must be enrolled"
        )
        say("or revoked again.")
        next_step(
            f"start it:            cipherbox serve {done.directory}",
            "and make it reachable at its old address",
        )


@click.group()
def store() -> None:
    """Copy HQ's store to another database, or upgrade it."""


@store.command("copy")
@click.argument("directory", type=HQ_DIRECTORY)
@click.argument("to", metavar="TO")
@click.option("--switch", is_flag=True, help="Then point DIRECTORY's configuration to the copy.")
@json_option
def store_copy(directory: Path, to: str, switch: bool, as_json: bool) -> None:
    """Copy the store of the HQ in DIRECTORY to another database, and compare.

    TO is postgresql://user@host:port/name, or sqlite:/path/to/a/new.sqlite3. HQ must be stopped.
    The original is not changed.
    """
    import attrs

    from cipherbox.cli.output import next_step, print_json, say
    from cipherbox.config.settings import load_server_config, write_server_config
    from cipherbox.portable import lock_file
    from cipherbox.server.operations.backup import copy_store
    from cipherbox.server.operations.check import LOCK
    from cipherbox.server.operations.open_store import is_same_database

    config = load_server_config(directory)
    target: ServerConfig = attrs.evolve(config, database=database_settings(to))
    if is_same_database(config.database, target.database):
        say(f"HQ uses this database already: cipherbox serve {directory}")
        return
    with lock_file(config.directory / LOCK, f"HQ's directory {config.directory}"):
        with progress(silent=as_json) as tell:
            sums = copy_store(config, target, tell)
        if switch:
            write_server_config(target)
    if as_json:
        print_json({name: {"rows": one.rows, "digest": one.digest} for name, one in sums.items()})
        return
    say(f"Copied and compared: {sum(one.rows for one in sums.values()):,} rows, all the same.")
    if switch:
        next_step(f"HQ uses the copy from now on: cipherbox serve {directory}")
    else:
        next_step(
            f"to use it: enter it in [database] of {config.directory}/cipherbox.toml, or copy with "
            "--switch"
        )


@store.command("upgrade")
@click.argument("directory", type=HQ_DIRECTORY)
def store_upgrade(directory: Path) -> None:
    """Upgrade the store of the HQ in DIRECTORY to this program's schema. HQ must be stopped.

    SQLite: a copy of the database is kept beside it; `serve` also upgrades automatically.
    PostgreSQL: every table is first copied into a schema beside HQ's, which you may drop when
    everything works.
    """
    from cipherbox.cli.output import say
    from cipherbox.config.settings import load_server_config
    from cipherbox.portable import lock_file
    from cipherbox.server.operations.check import LOCK
    from cipherbox.server.operations.open_store import open_store

    config = load_server_config(directory)
    with lock_file(config.directory / LOCK, f"HQ's directory {config.directory}"):
        open_store(config, upgrade=True).close()
    say("The store has this program's schema.")


def _report(done: Summary, as_json: bool) -> None:
    from cipherbox.cli.output import print_json, say

    if as_json:
        tables = {
            name: {"rows": one.rows, "digest": one.digest} for name, one in done.tables.items()
        }
        print_json(
            {
                "directory": str(done.directory),
                "made_at": done.made_at,
                "tables": tables,
                "log_entries": done.log_entries,
                "files": done.files,
                "outside": done.outside,
            }
        )
    else:
        rows = {name: one.rows for name, one in done.tables.items()}
        say(
            f"{rows['envelopes']:,} envelopes recorded, {rows['bodies']:,} of them with their "
            "bytes;"
        )
        say(
            f"{rows['clients']:,} clients; signed log up to entry {done.log_entries:,}; "
            f"{len(done.files)} files."
        )
