"""The schema: numbered steps, upgrades, and a partition of envelopes and deliveries for each month.

An upgrade runs in one transaction, which first copies all tables into another schema
(`NAME_before_VERSION`).  That takes time and space, so it must be requested: opening an older
schema without ``upgrade`` is refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources

from cipherbox.errors import Busy, SchemaTooNew, SchemaTooOld, StoreError
from cipherbox.store.postgres.driver import LOCK_MS, PostgresConnection, quoted
from cipherbox.store.postgres.target import Target

OLDEST = 2  # what 0.5.0 wrote
MARK = "cipherbox"  # begins the schema's comment, which also has its version
PARTITIONED = ("envelopes", "deliveries")
_LOCK = 0x43425831
_DAY_MS = 86_400_000


def scripts() -> list[str]:
    """Return the schema's steps, oldest first."""
    files = sorted(
        (f for f in resources.files(__package__).iterdir() if f.name.endswith(".sql")),
        key=lambda f: f.name,
    )
    return [f.read_text("utf-8") for f in files]


def version_of(connection: PostgresConnection, schema: str) -> int | None:
    """Return the schema's version, None if it does not exist; raise StoreError if it is
    not ours.
    """
    rows = connection.run(
        "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = ?", (schema,)
    )
    if not rows:
        return None
    mark = str(rows[0][0] or "").split()
    if len(mark) == 2 and mark[0] == MARK and mark[1].isdigit():
        return int(mark[1])
    tables = connection.run(
        "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE "
        "nspname = ?",
        (schema,),
    )
    if tables[0][0]:
        raise StoreError(
            f"the schema {schema} has tables of another program",
            remedy="choose another schema",
        )
    return 0


def prepare(connection: PostgresConnection, target: Target, *, create: bool, upgrade: bool) -> None:
    """Create or upgrade the schema, or raise StoreError."""
    steps, name = scripts(), target.schema
    version = version_of(connection, name)
    if not version and not create:
        raise StoreError(f"no HQ in {target}", remedy="run: cipherbox init --database URL")
    if version is not None and version > len(steps):
        raise SchemaTooNew(
            f"{target} was written by a newer program (schema {version}; this one knows "
            f"{len(steps)})",
            remedy="use that program",
        )
    if version == len(steps):
        return
    if version and version < OLDEST:
        raise SchemaTooOld(
            f"{target} was written by a version of CipherBox before 0.5.0, which this program "
            "cannot read; nothing was changed"
        )
    if version and not upgrade:
        raise StoreError(
            f"{target} has the older schema {version}, this program needs {len(steps)}",
            remedy="run: cipherbox store upgrade",
        )
    try:
        if version is None:
            connection.script(f"CREATE SCHEMA IF NOT EXISTS {quoted(name)}")
        marked = f"COMMENT ON SCHEMA {quoted(name)} IS '{MARK} {len(steps)}'"
        connection.script(";".join(["BEGIN", f"SELECT pg_advisory_xact_lock({_LOCK})"]))
        if version_of(connection, name) == (version or 0):
            if version:
                _keep(connection, name, f"{name}_before_{len(steps)}")
            for step in steps[version or 0 :]:
                connection.script(step)
            connection.script(marked)
        connection.script("COMMIT")
    except StoreError as error:
        connection.close()
        raise StoreError(
            str(error),
            remedy=(
                f"as a superuser in database {target.database} run one of: GRANT CREATE ON "
                f"DATABASE {quoted(target.database)} TO {quoted(target.user)};  or: CREATE "
                f"SCHEMA {quoted(name)} AUTHORIZATION {quoted(target.user)};"
            ),
        ) from error


def _keep(connection: PostgresConnection, name: str, copy: str) -> None:
    """Copy all tables, without indexes, into another schema."""
    connection.script(f"SET LOCAL statement_timeout = 0; CREATE SCHEMA {quoted(copy)}")
    tables = connection.run(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = ? AND c.relkind IN ('r', 'p') AND NOT c.relispartition",
        (name,),
    )
    for (table,) in tables:
        connection.script(
            f"CREATE TABLE {quoted(copy)}.{quoted(table)} AS TABLE {quoted(name)}.{quoted(table)}"
        )


def month_of(ms: int) -> int:
    """Return the number of months since year 0 of a time in ms since 1970."""
    at = datetime.fromtimestamp(ms / 1000, UTC)
    return at.year * 12 + at.month - 1


def _first(month: int) -> str:
    return f"{month // 12:04d}-{month % 12 + 1:02d}-01 00:00:00+00"


def name_of(table: str, month: int) -> str:
    return f"{table}_{month // 12:04d}_{month % 12 + 1:02d}"


def months(connection: PostgresConnection) -> list[int]:
    """Return the months that have partitions."""
    rows = connection.run(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE "
        "i.inhparent = CAST('envelopes' AS regclass) AND c.relname ~ "
        "'^envelopes_[0-9]{4}_[0-9]{2}$' ORDER BY 1"
    )
    return [int(name[-7:-3]) * 12 + int(name[-2:]) - 1 for (name,) in rows]


def keep_months(connection: PostgresConnection, now_ms: int) -> None:
    """Create the partitions of this and the next month; if that fails, rows go to the partition
    `other`.
    """
    wanted = {month_of(now_ms), month_of(now_ms + 31 * _DAY_MS)}
    for month in wanted - set(months(connection)):
        make_month(connection, month)


def make_month(connection: PostgresConnection, month: int) -> bool:
    """Create a month's partitions, in a transaction each; return False if they are locked."""
    try:
        for table in PARTITIONED:
            connection.script(
                f"SET lock_timeout = 1000; CREATE TABLE IF NOT EXISTS {name_of(table, month)} "
                f"PARTITION OF {table} FOR VALUES FROM ('{_first(month)}') TO "
                f"('{_first(month + 1)}')"
            )
    except Busy:
        return False
    finally:
        if not connection.broken:
            connection.script(f"SET lock_timeout = {LOCK_MS}")
    return True


def ends_at_ms(month: int) -> int:
    """Return the first ms after the month."""
    return int(datetime((month + 1) // 12, (month + 1) % 12 + 1, 1, tzinfo=UTC).timestamp() * 1000)
