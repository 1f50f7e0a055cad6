"""Who writes.  One row, `writer`, holds the epoch, the number of commits, and the lease of the HQ
that writes.

Rules.
1. Every transaction of a writer begins by changing this row where its own epoch is still in it, and
   so holds the row's lock to its end.  If the row has another epoch, another HQ took over: nothing
   is written.
2. The lease is renewed by every commit, and by HQ every two seconds when there is none, on the
   database's clock.  Another HQ takes over when it has not been renewed for `LEASE_S`, or at once
   when it was given back, or when the holder's session is gone: that is what a killed process
   leaves.  It ends the old holder's session first, so a transaction that is stalled half way cannot
   hold the row.
3. `commits` counts.  After a COMMIT that got no answer the count says whether it took effect; the
   row's lock makes the question wait until the old session is done.
"""

from __future__ import annotations

import attrs

from cipherbox.errors import Fenced, StoreUnavailable
from cipherbox.store.postgres.driver import PostgresConnection

LEASE_S = 6.0


@attrs.frozen
class Holder:
    """Who has the lease."""

    name: str
    epoch: int
    alive: bool  # its session is there and it renewed in time


def look(connection: PostgresConnection) -> Holder:
    """The lease as it stands."""
    holder, epoch, alive = connection.run(
        "SELECT w.holder, w.epoch, w.renewed_at > clock_timestamp() - make_interval(secs => ?) "
        "AND EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = w.pid AND a.backend_start = "
        "w.session_began) FROM writer w",
        (LEASE_S,),
    )[0]
    return Holder(holder, epoch, bool(holder) and alive)


def take(connection: PostgresConnection, name: str, least: int, *, force: bool) -> tuple[int, int]:
    """The new epoch, above ``least``, and the count of commits.  StoreUnavailable while somebody
    else has the lease.
    """
    old = connection.run("SELECT pid, session_began FROM writer")[0]
    if not force and look(connection).alive:
        raise StoreUnavailable(f"another HQ has the lease: {look(connection).name}")
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
    """This holder with a new session; the count of commits.  Waits for what the old session
    still does.  Fenced.
    """
    rows = connection.run("SELECT 1 FROM writer WHERE epoch = ? AND holder = ?", (epoch, name))
    if rows:
        rows = connection.settle(
            "UPDATE writer SET pid = pg_backend_pid(), session_began = (SELECT backend_start "
            "FROM pg_stat_activity WHERE pid = pg_backend_pid()), renewed_at = "
            f"clock_timestamp() WHERE epoch = {epoch} RETURNING commits"
        )
    if not rows:
        raise Fenced
    count: int = rows[0][0]
    return count


def begin(connection: PostgresConnection, epoch: int) -> int:
    """Opens a transaction of the writer; the number it will have if it is committed.  Fenced."""
    rows = connection.script(
        "BEGIN; UPDATE writer SET commits = commits + 1, renewed_at = clock_timestamp() WHERE "
        f"epoch = {epoch} RETURNING commits"
    )
    if not rows:
        connection.script("ROLLBACK")
        raise Fenced
    count: int = rows[0][0]
    return count


def renew(connection: PostgresConnection, epoch: int) -> None:
    """Says that the holder lives.  Fenced."""
    if not connection.settle(
        f"UPDATE writer SET renewed_at = clock_timestamp() WHERE epoch = {epoch} RETURNING 1"
    ):
        raise Fenced


def release(connection: PostgresConnection, epoch: int) -> None:
    """The next HQ need not wait."""
    connection.script(
        f"UPDATE writer SET holder = '', pid = 0, session_began = NULL WHERE epoch = {epoch}"
    )
