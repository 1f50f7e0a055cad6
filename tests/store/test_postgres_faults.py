"""PostgreSQL away, restarted, locked, full, failing over; two HQs at one database.  Every server here is real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cipherbox.cli import postgres_servers
from cipherbox.config import secret
from cipherbox.errors import ConfigError, DiskFull, Fenced, StoreError, StoreUnavailable
from cipherbox.store.port import HISTORY, StandbyOnly
from cipherbox.store.postgres import driver, lease
from cipherbox.store.postgres import store as store_module
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.driver import Link
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target
from tests import postgres
from tests.store.suite import acknowledged, published

Opener = Callable[..., PostgresStore]


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opener]:
    """Opens stores that are closed at the end of the test."""
    with ExitStack() as stack:

        def opened(target: Target, **more: Any) -> PostgresStore:
            store = PostgresStore(target, tmp_path, **{"create": True, **more})
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def own() -> Iterator[postgres.Server]:
    """A server of one test, which may do with it what it likes."""
    server = postgres.new_server()
    try:
        yield server.start()
    finally:
        server.remove()


def bodies(store: PostgresStore, *numbers: int) -> list[bytes | None]:
    return store.read_bodies(numbers)


# -- a commit without an answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reached", [True, False])
def test_a_connection_cut_in_the_middle_of_commit(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    store = opening(postgres.target(postgresql, postgres.schema()))
    store.commit(published(1), store.epoch)
    script, armed = Link.script, [True]

    def cut(link: Link, statements: str) -> list[list[Any]]:
        if statements == "COMMIT" and armed:
            armed.clear()
            if reached:
                script(link, statements)
                link._sock.shutdown(2)
                return script(link, "SELECT 1")
            postgresql.sql(f"SELECT pg_terminate_backend({store_pid(store)})")
        return script(link, statements)

    monkeypatch.setattr(Link, "script", cut)
    if reached:
        store.commit(published(2, b"two"), store.epoch)
    else:
        with pytest.raises(StoreUnavailable):
            store.commit(published(2, b"two"), store.epoch)
        assert bodies(store, 2) == [None]
        assert store.load(10).next_number == 2
        store.commit(published(2, b"two"), store.epoch)
    assert bodies(store, 1, 2) == [b"body", b"two"]
    store.commit(acknowledged(1, 2), store.epoch)
    assert bodies(store, 1, 2) == [None, None]


def store_pid(store: PostgresStore) -> int:
    assert store._link is not None
    found: int = store._link._db.run("SELECT pg_backend_pid()")[0][0]
    return found


def test_nothing_is_confirmed_while_no_standby_has_it(opening: Opener, own: postgres.Server) -> None:
    """An administrator who cancels the wait for a standby does not make a commit safe."""
    store = opening(postgres.target(own))
    store.commit(published(1), store.epoch)
    own.synchronous("nobody")
    thread = threading.Thread(target=lambda: store.commit(published(2), store.epoch))
    thread.start()
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    for _ in range(500):
        if own.sql(waiting):
            break
        postgres.PAUSE.wait(0.02)
    thread.join(0.2)
    assert thread.is_alive()  # held back, not confirmed
    own.sql(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) w")
    thread.join(0.5)
    assert thread.is_alive()  # its new session waits for a standby just so
    own.synchronous("")
    thread.join(20)
    assert not thread.is_alive()
    assert bodies(store, 2) == [b"body"]
    assert store.load(10).next_number == 3
    store.commit(published(3), store.epoch)


# -- away, and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "quit", "kill"])
def test_a_server_that_restarts(opening: Opener, own: postgres.Server, how: str) -> None:
    store = opening(postgres.target(own))
    store.commit(published(1, b"one", b"x" * 300_000), store.epoch)
    epoch = store.epoch
    if how == "kill":
        own.kill()
    else:
        own.stop(postgres_servers.FAST if how == "stop" else postgres_servers.AT_ONCE)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.commit(published(3), store.epoch)
        with pytest.raises(StoreUnavailable):
            store.load(10)
        with pytest.raises(StoreUnavailable):
            store.renew()
    own.start()
    history = store.get_setting(HISTORY)
    assert store.load(10).next_number == 3
    store.commit(published(3, b"three"), store.epoch)
    assert bodies(store, 1, 2, 3) == [b"one", b"x" * 300_000, b"three"]
    assert (store.epoch, store.get_setting(HISTORY)) == (epoch, history)


def test_no_connection_to_be_had(opening: Opener, own: postgres.Server) -> None:
    own.sql("CREATE ROLE hq LOGIN; GRANT CREATE ON DATABASE postgres TO hq")
    store = opening(postgres.target(own, user="hq"))
    own.sql("ALTER ROLE hq CONNECTION LIMIT 0")
    own.sql(f"SELECT pg_terminate_backend({store_pid(store)})")
    with pytest.raises(StoreUnavailable, match="too many connections"):
        store.commit(published(1), store.epoch)
    own.sql("ALTER ROLE hq CONNECTION LIMIT -1")
    store.commit(published(1), store.epoch)


def test_a_lock_held_by_somebody(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LOCK_MS", 100)
    schema = postgres.schema()
    store = opening(postgres.target(postgresql, schema))
    other = Connector(postgres.target(postgresql, schema)).writable()
    other.script("BEGIN; LOCK TABLE entries")
    with pytest.raises(StoreUnavailable, match="lock timeout"):
        store.commit(published(1), store.epoch)
    other.script("ROLLBACK")
    other.close()
    store.commit(published(1), store.epoch)


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'", DiskFull, "no space"),
        ("PERFORM pg_sleep(5)", StoreUnavailable, "statement timeout"),
    ],
)
def test_a_full_disk_and_a_statement_that_takes_too_long(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch, body: str, error: type[Exception],
    text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(driver, "STATEMENT_MS", 200)
    schema = postgres.schema()
    store = opening(postgres.target(postgresql, schema))
    postgresql.sql(
        f"CREATE FUNCTION {schema}.full_up() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; RETURN NEW; END$$; "
        f"CREATE TRIGGER t BEFORE INSERT ON {schema}.bodies FOR EACH ROW EXECUTE FUNCTION {schema}.full_up()"
    )
    with pytest.raises(error, match=text):
        store.commit(published(1), store.epoch)
    assert store.load(10).next_number == 1
    postgresql.sql(f"DROP TRIGGER t ON {schema}.bodies")
    store.commit(published(1), store.epoch)
    assert bodies(store, 1) == [b"body"]


def test_a_session_ended_while_nothing_was_going_on(opening: Opener, postgresql: postgres.Server) -> None:
    store = opening(postgres.target(postgresql, postgres.schema()))
    for number in (1, 2, 3):
        postgresql.sql(f"SELECT pg_terminate_backend({store_pid(store)})")
        store.commit(published(number), store.epoch)
    assert store.load(10).next_number == 4


# -- failing over -------------------------------------------------------------------------------------------------


def both(primary: postgres.Server, standby: postgres.Server) -> Target:
    hosts = tuple((str(server.directory), server.port) for server in (primary, standby))
    return Target(hosts, database="postgres", user="cipherbox", tls="off")


def test_a_synchronous_standby_takes_over_and_nothing_is_lost(opening: Opener, own: postgres.Server) -> None:
    standby = own.standby()
    try:
        standby.start()
        own.synchronous()
        store = opening(both(own, standby))
        history = store.get_setting(HISTORY)
        for number in range(1, 6):
            store.commit(published(number, b"%d" % number), store.epoch)
        own.kill()
        with pytest.raises(StoreUnavailable):
            store.commit(published(6), store.epoch)
        standby.promote()
        assert store.load(10).next_number == 6
        store.commit(published(6, b"6"), store.epoch)
        assert bodies(store, *range(1, 7)) == [b"%d" % n for n in range(1, 7)]
        assert store.get_setting(HISTORY) == history
        own.start()  # back, and still believes that it is the primary
        postgres_pid = store_pid(store)
        standby.sql(f"SELECT pg_terminate_backend({postgres_pid})")
        assert store.load(10).next_number == 7  # the newer timeline is the right one
    finally:
        standby.remove()


def test_a_standby_that_lagged_behind_begins_a_new_history(opening: Opener, own: postgres.Server) -> None:
    standby = own.standby()
    try:
        standby.start()
        store = opening(both(own, standby))
        store.commit(published(1), store.epoch)
        standby.stop()
        store.put_setting(HISTORY, b"before")
        store.commit(published(2), store.epoch)
        own.kill()
        standby.start()
        standby.promote()
        before = store.epoch
        assert store.load(10).next_number < 3
        assert store.epoch > before
        assert store.get_setting(HISTORY) not in (None, b"before")
        store.commit(published(store.load(10).next_number), store.epoch)
    finally:
        standby.remove()


# -- two HQs ------------------------------------------------------------------------------------------------------


def test_a_second_hq_waits_and_takes_over(opening: Opener, postgresql: postgres.Server) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    first.commit(published(1), first.epoch)
    with pytest.raises(StandbyOnly, match=first._name.split("/", maxsplit=1)[0]):
        opening(target)
    first.close()  # given back
    second = opening(target)
    assert second.epoch == first.epoch + 1
    second.commit(published(2), second.epoch)
    for write in (lambda: first.commit(published(3), first.epoch), first.renew, lambda: first.put_setting("a", b"b")):
        with pytest.raises(Fenced):
            write()
    assert second.get_setting("a") is None


def test_a_killed_hq_is_followed_at_once(opening: Opener, postgresql: postgres.Server) -> None:
    target = postgres.target(postgresql, postgres.schema())
    first = opening(target)
    assert first._link is not None
    first._link._sock.shutdown(2)  # as the kernel does for a killed process
    for _ in range(200):
        try:
            second = opening(target)
            break
        except StandbyOnly:
            postgres.PAUSE.wait(0.02)
    second.commit(published(1), second.epoch)
    with pytest.raises(Fenced):
        first.commit(published(1), first.epoch)


def test_a_stalled_hq_never_writes_again(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stalled in the middle of a commit, holding the row: its session is ended, and its commit fails."""
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
        go.wait(20)
        return dropped

    def write() -> None:
        try:
            first.commit(published(1, b"late"), first.epoch)
        except (StoreUnavailable, Fenced) as error:
            found.append(error)

    monkeypatch.setattr(store_module.commit, "write", slowly)
    thread = threading.Thread(target=write)
    thread.start()
    assert stalled.wait(20)
    monkeypatch.setattr(store_module.commit, "write", original)
    for _ in range(200):
        try:
            second = opening(target)
            break
        except StandbyOnly:
            postgres.PAUSE.wait(0.05)
    second.commit(published(1, b"mine"), second.epoch)
    go.set()
    thread.join(20)
    assert found
    with pytest.raises(Fenced):
        first.commit(published(2), first.epoch)
    assert bodies(second, 1) == [b"mine"]


# -- what an administrator may have got wrong ---------------------------------------------------------------------


def test_what_is_set_up_wrong_is_said(opening: Opener, own: postgres.Server, tmp_path: Path) -> None:
    own.sql("CREATE ROLE small LOGIN")
    own.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    own.sql("CREATE SCHEMA theirs; CREATE TABLE theirs.t (x integer)")
    with pytest.raises(StoreError, match="there is no HQ in"):
        opening(postgres.target(own), create=False)
    with pytest.raises(StoreError, match="GRANT CREATE ON DATABASE"):
        opening(postgres.target(own, user="small"))
    with pytest.raises(StoreError, match="no such database"):
        opening(postgres.target(own, database="nowhere"))
    with pytest.raises(StoreError, match="does not accept this user"):
        opening(postgres.target(own, user="nobody"))
    with pytest.raises(StoreError, match="UTF8"):
        opening(postgres.target(own, database="latin"))
    with pytest.raises(StoreError, match="another program"):
        opening(postgres.target(own, "theirs"))
    with pytest.raises(StoreUnavailable, match="TLS"):
        opening(postgres.target(own, tls="verify"))
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        opening(postgres.target(own, password=lambda: secret(password).decode()))
    own.sql("ALTER SYSTEM SET fsync = off")
    own.sql("SELECT pg_reload_conf()")
    for _ in range(100):
        if own.sql("SHOW fsync") == [["off"]]:
            break
        postgres.PAUSE.wait(0.02)
    with pytest.raises(StoreError, match="fsync"):
        opening(postgres.target(own))


def test_a_newer_schema_is_refused_and_left_alone(opening: Opener, postgresql: postgres.Server) -> None:
    schema = postgres.schema()
    opening(postgres.target(postgresql, schema)).close()
    postgresql.sql(f"COMMENT ON SCHEMA {schema} IS 'cipherbox 99'")
    with pytest.raises(StoreError, match="newer program"):
        opening(postgres.target(postgresql, schema))


def test_an_older_schema_waits_for_the_word_and_is_upgraded(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an HQ of before had it: with what waits in it, and without what came later."""
    from cipherbox.store.postgres import schema as schema_module

    target, steps = postgres.target(postgresql, postgres.schema()), schema_module.scripts()
    with monkeypatch.context() as patch:
        patch.setattr(schema_module, "scripts", lambda: steps[:1])
        first = opening(target)
        first.commit(published(1, b"x"), first.epoch)
        first.close()
    with pytest.raises(StoreError, match="older schema 1"):
        opening(target)
    again = opening(target, create=False, upgrade=True)
    assert bodies(again, 1) == [b"x"]
    assert again.put_prekeys("A", b"signed", [(1, b"one")], 3, False) == 1
    again.close()
    assert opening(target).take_prekeys("A", True) == (b"signed", b"one")


def test_another_machines_spool_is_missed(
    opening: Opener, postgresql: postgres.Server, tmp_path: Path
) -> None:
    target = postgres.target(postgresql, postgres.schema(), bodies="spool")
    first = opening(target)
    first.commit(published(1, b"x" * 200_000), first.epoch)
    first.close()
    elsewhere = tmp_path / "elsewhere"
    with pytest.raises(StoreError, match="another machine"):
        PostgresStore(target, elsewhere)
    again = opening(target)
    assert bodies(again, 1) == [b"x" * 200_000]
