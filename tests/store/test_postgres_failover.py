"""PostgreSQL failing over, and two HQs at one database.  Every server here is real."""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest

from cipherbox.errors import Fenced, StoreLeased, StoreUnavailable
from cipherbox.harness import postgres_servers
from cipherbox.store.port import INCARNATION, Store
from cipherbox.store.postgres import lease, schema
from cipherbox.store.postgres import store as store_module
from cipherbox.store.postgres.inspect import inspect_store
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target
from cipherbox.store.waiting import WaitingSession
from tests import postgres
from tests.store.conftest import Opener
from tests.store.postgres_cases import bodies, store_pid
from tests.store.suite import published

# -- failing over ----------------------------------------------------------------------------------


def both(primary: postgres.Server, standby: postgres.Server) -> Target:
    hosts = tuple((str(server.directory), server.port) for server in (primary, standby))
    return Target(hosts, database="postgres", user="cipherbox", tls="off")


def test_a_synchronous_standby_takes_over_and_nothing_is_lost(
    opening: Opener, own: postgres.Server
) -> None:
    standby = own.standby()
    try:
        standby.start()
        own.synchronous()
        store = opening(both(own, standby))
        history = store.get_setting(INCARNATION)
        for number in range(1, 6):
            store.commit(published(number, b"%d" % number), store.epoch)
        own.kill()
        with pytest.raises(StoreUnavailable):
            store.commit(published(6), store.epoch)
        standby.promote()
        assert store.load(10).next_number == 6
        store.commit(published(6, b"6"), store.epoch)
        assert bodies(store, *range(1, 7)) == [b"%d" % n for n in range(1, 7)]
        assert store.get_setting(INCARNATION) == history
        own.start()  # back, and still believes that it is the primary
        postgres_pid = store_pid(store)
        standby.sql(f"SELECT pg_terminate_backend({postgres_pid})")
        assert store.load(10).next_number == 7  # the newer timeline is the right one
        standby.stop(postgres_servers.AT_ONCE)
        with pytest.raises(StoreUnavailable):
            store.commit(published(7), store.epoch)
        with pytest.raises(StoreUnavailable, match="is an old primary"):
            store.load(10)  # alone it is not enough
        with pytest.raises(StoreUnavailable, match="is an old primary"):
            bodies(store, 1)
        standby.start()
        assert store.load(10).next_number == 7
    finally:
        standby.remove()


def lagging(opening: Opener, own: postgres.Server, standby: postgres.Server) -> Store:
    """A store whose primary died after a commit that the standby, which is the primary now,
    never got.
    """
    standby.start()
    store = opening(both(own, standby))
    store.commit(published(1), store.epoch)
    standby.stop()
    store.put_setting(INCARNATION, b"before")
    store.commit(published(2), store.epoch)
    own.kill()
    standby.start()
    standby.promote()
    return store


def test_a_standby_that_lagged_behind_begins_a_new_history(
    opening: Opener, own: postgres.Server
) -> None:
    standby = own.standby()
    try:
        store = lagging(opening, own, standby)
        before = store.epoch
        assert store.load(10).next_number < 3
        assert store.epoch > before
        assert store.get_setting(INCARNATION) not in (None, b"before")
        store.commit(published(store.load(10).next_number), store.epoch)
    finally:
        standby.remove()


# -- two HQs ---------------------------------------------------------------------------------------


def test_a_second_hq_waits_and_takes_over(opening: Opener, postgresql: postgres.Server) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    first.commit(published(1), first.epoch)
    with pytest.raises(StoreLeased, match=re.escape(socket.gethostname())):
        opening(target)
    first.close()  # given back
    second = opening(target)
    assert second.epoch == first.epoch + 1
    second.commit(published(2), second.epoch)
    for write in (
        lambda: first.commit(published(3), first.epoch),
        first.renew,
        lambda: first.put_setting("a", b"b"),
    ):
        with pytest.raises(Fenced):
            write()
    assert second.get_setting("a") is None


def test_the_writer_knows_who_waits(opening: Opener, postgresql: postgres.Server) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    assert first.standbys() == []
    session = WaitingSession()
    for _ in range(3):  # each attempt's session replaces the one before
        with pytest.raises(StoreLeased):
            opening(target, waiting=session)
    me = f"{socket.gethostname()}/{os.getpid()}"
    assert [one.name for one in first.standbys()] == [me]
    assert inspect_store(target).standbys == first.standbys()
    other = opening(postgres.target(postgresql, postgres.schema()))
    assert other.standbys() == []  # it waits for another database
    postgres.until(lambda: len(sessions(postgresql, "cipherbox standby %")) == 1)
    first.close()
    second = opening(target, waiting=session)  # it has the lease now
    session.close()
    assert session.waited_s > 0
    postgres.until(lambda: second.standbys() == [])


def test_a_standby_that_asks_no_more_does_not_count(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was cut off keeps its session for a while; its end removes it at once."""
    target = postgres.target(postgresql, postgres.schema())
    first, session = opening(target), WaitingSession()
    with pytest.raises(StoreLeased):
        opening(target, waiting=session)
    assert len(first.standbys()) == 1
    monkeypatch.setattr(lease, "WAITS_S", 0.0)
    assert first.standbys() == []
    monkeypatch.undo()
    for (pid,) in sessions(postgresql, "cipherbox standby %"):
        postgresql.sql(f"SELECT pg_terminate_backend({pid})")
    postgres.until(lambda: first.standbys() == [])
    session.close()


def sessions(server: postgres.Server, name: str) -> list[Any]:
    return server.sql(f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE '{name}'")


def taken_over(opening: Opener, target: Target) -> PostgresStore:
    """Open a store once nobody else has the lease."""
    found: list[PostgresStore] = []

    def opened() -> bool:
        with suppress(StoreLeased):
            found.append(opening(target))
        return bool(found)

    postgres.until(opened)
    return found[0]


def test_a_killed_hq_is_followed_at_once(opening: Opener, postgresql: postgres.Server) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    assert first._connection is not None
    first._connection._sock.shutdown(2)  # as the kernel does for a killed process
    second = taken_over(opening, target)
    second.commit(published(1), second.epoch)
    with pytest.raises(Fenced):
        first.commit(published(1), first.epoch)


def test_a_lease_ends_though_the_databases_clock_was_set_back(
    opening: Opener, postgresql: postgres.Server
) -> None:
    """A standby waited until that clock had reached the last renewal, if the holder was cut off."""
    target = postgres.target(postgresql, postgres.schema())
    first, now = opening(target), 1000.0
    assert isinstance(first, PostgresStore)
    session = WaitingSession(lambda: now)

    def renewed_ahead(by: str) -> None:
        assert first._connection is not None
        first._connection.run(f"UPDATE writer SET renewed_at = renewed_at + interval '{by}'")

    renewed_ahead("1 hour")
    for later_s in (0.0, lease.LEASE_S - 0.1, 0.05):
        now += later_s
        with pytest.raises(StoreLeased):
            opening(target, waiting=session)
    renewed_ahead("1 second")  # the holder lives
    for later_s in (0.1, lease.LEASE_S):
        now += later_s
        with pytest.raises(StoreLeased):
            opening(target, waiting=session)
    now += 0.1
    second = opening(target, waiting=session)
    session.close()
    second.commit(published(1), second.epoch)
    with pytest.raises(Fenced):
        first.commit(published(1), first.epoch)


def test_a_stalled_hq_never_writes_again(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stalled in the middle of a commit, holding the row: its session is ended, and its commit
    fails.
    """
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    monkeypatch.setattr(lease, "LEASE_S", 0.3)
    monkeypatch.setattr(store_module, "ANSWER_S", 0.0)
    go, stalled = threading.Event(), threading.Event()
    found: list[BaseException] = []
    original = store_module.commit.write

    def slowly(*arguments: Any) -> list[str]:
        dropped = original(*arguments)
        stalled.set()
        go.wait(60)
        return dropped

    def write() -> None:
        try:
            first.commit(published(1, b"late"), first.epoch)
        except (StoreUnavailable, Fenced) as error:
            found.append(error)

    monkeypatch.setattr(store_module.commit, "write", slowly)
    thread = threading.Thread(target=write)
    thread.start()
    assert stalled.wait(60)
    monkeypatch.setattr(store_module.commit, "write", original)
    second = taken_over(opening, target)
    second.commit(published(1, b"mine"), second.epoch)
    go.set()
    thread.join(60)
    assert found
    with pytest.raises(Fenced):
        first.commit(published(2), first.epoch)
    assert bodies(second, 1) == [b"mine"]


def test_what_was_read_before_commits_were_lost_is_not_built_upon(
    opening: Opener, own: postgres.Server
) -> None:
    """The session changes to a standby that lagged behind while nothing was going on."""
    standby = own.standby()
    try:
        store = lagging(opening, own, standby)
        with suppress(StoreUnavailable):
            store.renew()  # finds its session broken
        store.renew()  # connects again
        for write in (
            lambda: store.commit(published(3), store.epoch),
            lambda: store.put_setting("a", b"b"),
        ):
            with pytest.raises(StoreUnavailable, match="reloads its state"):
                write()
        number = store.load(10).next_number
        store.commit(published(number), store.epoch)
    finally:
        standby.remove()


def test_a_schema_is_not_upgraded_under_a_running_hq(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    steps = schema.scripts()
    monkeypatch.setattr(schema, "scripts", lambda: [*steps, "CREATE TABLE later (x integer)"])
    with pytest.raises(StoreLeased, match="stop it before the upgrade"):
        opening(target, upgrade=True)
    first.commit(published(1), first.epoch)
    first.close()
    assert bodies(opening(target, upgrade=True), 1) == [b"body"]
    postgresql.sql(f"DROP SCHEMA {target.schema}_before_{len(steps) + 1} CASCADE")
