"""The writer's lease and fencing.  One row, `writer`, holds the epoch, the number of commits, and
the lease of the writing HQ.

Rules:

1. Every transaction of a writer begins by updating this row where it still has the writer's epoch,
   and so holds the row's lock until its end.  If the row has another epoch, another HQ has taken
   over and nothing is written.
2. The lease is renewed by every commit, and every two seconds without one, by the database's clock.
   Another HQ takes over once it has not been renewed for `LEASE_S`, or immediately after it was
   released or the holder's session has ended, as after a killed process.  That clock may be set
   back: one that waits also counts itself since when it has seen the same renewal.  It first
   terminates the old holder's session, so that a stalled transaction cannot keep the row locked.
3. `commits` counts commits.  After a COMMIT without an answer the count tells whether it took
   effect; because of the row's lock the query waits until the old session has ended.
4. An HQ that waits keeps the session of its latest attempt until the next one, under a name that
   says so.  So the writer learns from the server's own list of sessions who can take over: nothing
   is written for it, and nothing is left behind by a standby that was killed.  One that has not
   asked for `WAITS_S`, as after its machine was cut off, does not count.
"""

from __future__ import annotations

from contextlib import suppress

import attrs

from cipherbox.errors import CipherBoxError, Fenced, StoreUnavailable
from cipherbox.store.port import Standby
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.waiting import WaitingSession

LEASE_S = 6.0
WAITS_S = 15.0  # above the time of an attempt in which two servers do not answer
_NAME_BYTES = 63  # of a session's name, by PostgreSQL's own limit
_STANDBY = "'cipherbox standby ' || 'writer'::regclass::oid || ' '"  # of this schema


@attrs.frozen
class Holder:
    """The holder of the lease."""

    name: str
    epoch: int
    alive: bool  # its session exists and it renewed in time
    renewed: str  # when, by the database's clock


def current(connection: PostgresConnection) -> Holder:
    """Return the current holder of the lease."""
    holder, epoch, renewed, alive = connection.run(
        "SELECT w.holder, w.epoch, CAST(w.renewed_at AS text), w.renewed_at > clock_timestamp() - "
        "make_interval(secs => ?) AND EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = w.pid "
        "AND a.backend_start = w.session_began) FROM writer w",
        (LEASE_S,),
    )[0]
    return Holder(holder, epoch, bool(holder) and alive, renewed)


def stand_by(connection: PostgresConnection, name: str, waiting: WaitingSession | None) -> bool:
    """Name the session of an HQ that waits, and let ``waiting`` keep it; return whether it does."""
    if waiting is None or connection.broken:
        return False
    connection.run(
        f"SELECT set_config('application_name', substr({_STANDBY} || ?, 1, {_NAME_BYTES}), false)",
        (name.rpartition("/")[0],),
    )
    waiting.keep(connection)
    return True


def standbys(connection: PostgresConnection) -> list[Standby]:
    """Return the HQs that wait for the lease; sessions of other users do not count."""
    rows = connection.run(
        f"SELECT DISTINCT substr(application_name, length({_STANDBY}) + 1), "
        "coalesce(host(client_addr), '') FROM pg_stat_activity WHERE datname = current_database() "
        "AND usename = current_user AND query_start > clock_timestamp() - make_interval(secs => ?) "
        f"AND starts_with(application_name, {_STANDBY}) ORDER BY 1, 2",
        (WAITS_S,),
    )
    return [Standby(name, address) for name, address in rows]


def take(
    connection: PostgresConnection,
    name: str,
    least: int,
    *,
    force: bool,
    waiting: WaitingSession | None = None,
) -> tuple[int, int]:
    """Take the lease; return the new epoch, above ``least``, and the number of commits.

    Raise StoreUnavailable while another HQ has the lease, unless ``force``.  ``waiting`` counts for
    how long it has not been renewed.
    """
    old = connection.run("SELECT pid, session_began FROM writer")[0]
    found = current(connection)
    silent_s = waiting.unchanged_s((found.epoch, found.renewed)) if waiting is not None else 0.0
    if not force and found.alive and silent_s <= LEASE_S:
        raise StoreUnavailable(f"another HQ has the lease: {found.name}")
    if old[1] is not None:
        connection.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ? AND "
            "backend_start = ? AND pid <> pg_backend_pid()",
            old,
        )
    rows = connection.run(
        "UPDATE writer SET epoch = greatest(epoch, CAST(? AS bigint)) + 1, holder = ?, pid = "
        "pg_backend_pid(), session_began = (SELECT backend_start FROM pg_stat_activity WHERE pid "
        "= pg_backend_pid()), renewed_at = clock_timestamp() WHERE epoch = (SELECT epoch FROM "
        "writer) AND pid = ? RETURNING epoch, commits",
        (least, name, old[0]),
    )
    if not rows:
        raise StoreUnavailable("another HQ took the lease")
    return rows[0][0], rows[0][1]


def resume(connection: PostgresConnection, name: str, epoch: int) -> int:
    """Continue the lease in a new session, waiting for the old one to end; return the number of
    commits.  Raise Fenced if another HQ has taken over.
    """
    rows = connection.run("SELECT 1 FROM writer WHERE epoch = ? AND holder = ?", (epoch, name))
    if rows:
        rows = connection.end_transaction(
            "UPDATE writer SET pid = pg_backend_pid(), session_began = (SELECT backend_start "
            "FROM pg_stat_activity WHERE pid = pg_backend_pid()), renewed_at = "
            f"clock_timestamp() WHERE epoch = {epoch} RETURNING commits"
        )
    if not rows:
        raise Fenced
    count: int = rows[0][0]
    return count


def begin(connection: PostgresConnection, epoch: int) -> int:
    """Begin a transaction of the writer; return its number if it commits.  Raise Fenced."""
    rows = connection.script(
        "BEGIN; UPDATE writer SET commits = commits + 1, renewed_at = clock_timestamp() WHERE "
        f"epoch = {epoch} RETURNING commits"
    )
    if not rows:
        connection.script("ROLLBACK")
        raise Fenced
    count: int = rows[0][0]
    return count


def server_ms(connection: PostgresConnection) -> int:
    """Return what the server's clock shows, ms since 1970."""
    ((at,),) = connection.run("SELECT ms_of(clock_timestamp())", ())
    return int(at)


def renew(connection: PostgresConnection, epoch: int) -> None:
    """Renew the lease; raise Fenced if another HQ has taken over."""
    if not connection.end_transaction(
        f"UPDATE writer SET renewed_at = clock_timestamp() WHERE epoch = {epoch} RETURNING 1"
    ):
        raise Fenced


def release(connection: PostgresConnection, epoch: int) -> None:
    """Release the lease, so that the next HQ need not wait."""
    connection.script(
        f"UPDATE writer SET holder = '', pid = 0, session_began = NULL WHERE epoch = {epoch}"
    )


def give_up(connection: PostgresConnection, epoch: int) -> None:
    """Close a session; release its lease, if ``epoch`` is not 0: until the server notices that the
    session ended, the next start would find the lease taken.
    """
    if epoch and not connection.broken:
        with suppress(CipherBoxError):
            release(connection, epoch)
    connection.close()
