"""PostgreSQL away, restarted, locked, full, failing over; two HQs at one database.  Every server
here is real.
"""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from cipherbox.broker.model import Changes, Cutoffs
from cipherbox.config.settings import secret
from cipherbox.errors import ConfigError, DiskFull, SchemaTooOld, StoreError, StoreUnavailable
from cipherbox.harness import postgres_servers
from cipherbox.store.port import INCARNATION
from cipherbox.store.postgres import driver, lease, retention
from cipherbox.store.postgres import schema as schema_module
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.store import PostgresStore
from tests import postgres
from tests.store.conftest import Opener
from tests.store.postgres_cases import bodies, store_pid
from tests.store.suite import acknowledged, published
from tests.store.tlsfront import TlsFront

# -- a commit without an answer --------------------------------------------------------------------


@pytest.mark.parametrize("reached", [True, False])
def test_a_connection_cut_in_the_middle_of_commit(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    store = opening(postgres.target(postgresql, postgres.schema()))
    store.commit(published(1), store.epoch)
    script, armed = PostgresConnection.script, [True]

    def cut(connection: PostgresConnection, statements: str) -> list[list[Any]]:
        if statements == "COMMIT" and armed:
            armed.clear()
            if reached:
                script(connection, statements)
                connection._sock.shutdown(2)
                return script(connection, "SELECT 1")
            postgresql.sql(f"SELECT pg_terminate_backend({store_pid(store)})")
        return script(connection, statements)

    monkeypatch.setattr(PostgresConnection, "script", cut)
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


def test_nothing_is_confirmed_while_no_standby_has_it(
    opening: Opener, own: postgres.Server
) -> None:
    """An administrator who cancels the wait for a standby does not make a commit safe."""
    store = opening(postgres.target(own))
    store.commit(published(1), store.epoch)
    done = [1]
    enough = threading.Event()

    def commit() -> None:
        while not enough.is_set():
            store.commit(published(done[-1] + 1), store.epoch)
            done.append(done[-1] + 1)

    own.synchronous("nobody")  # the server takes it up a moment later
    thread = threading.Thread(target=commit)
    thread.start()
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = "
        "'cipherbox'"
    )
    postgres.until(lambda: own.sql(waiting))
    enough.set()
    held = done[-1] + 1
    thread.join(0.2)
    assert thread.is_alive()  # held back, not confirmed
    own.sql(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) w")
    thread.join(0.5)
    assert thread.is_alive()  # its new session waits for a standby just so
    own.synchronous("")
    thread.join(60)
    assert not thread.is_alive()
    assert done[-1] == held
    assert bodies(store, held) == [b"body"]
    assert store.load(10).next_number == held + 1
    store.commit(published(held + 1), store.epoch)


# -- away, and back --------------------------------------------------------------------------------


def segments() -> list[str]:
    """The numbers of the segments of shared memory on this machine, where Linux tells."""
    table = Path("/proc/sysvipc/shm")
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    return [line.split()[1] for line in lines]


@pytest.mark.parametrize("how", ["stop", "quit", "kill"])
def test_a_server_that_restarts(opening: Opener, own: postgres.Server, how: str) -> None:
    store = opening(postgres.target(own))
    store.commit(published(1, b"one", b"x" * 300_000), store.epoch)
    epoch = store.epoch
    memory = (own.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
    if how == "kill":
        own.kill()
    else:
        own.stop(postgres_servers.FAST if how == "stop" else postgres_servers.AT_ONCE)
    assert memory not in segments()  # our own server leaves none
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.commit(published(3), store.epoch)
        with pytest.raises(StoreUnavailable):
            store.load(10)
        with pytest.raises(StoreUnavailable):
            store.renew()
    own.start()
    history = store.get_setting(INCARNATION)
    assert store.load(10).next_number == 3
    store.commit(published(3, b"three"), store.epoch)
    assert bodies(store, 1, 2, 3) == [b"one", b"x" * 300_000, b"three"]
    assert (store.epoch, store.get_setting(INCARNATION)) == (epoch, history)


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
    opening: Opener,
    postgresql: postgres.Server,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.setattr(driver, "STATEMENT_MS", 200)
    schema = postgres.schema()
    store = opening(postgres.target(postgresql, schema))
    postgresql.sql(
        f"CREATE FUNCTION {schema}.full_up() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body}; "
        f"RETURN NEW; END$$; CREATE TRIGGER t BEFORE INSERT ON {schema}.bodies FOR EACH ROW "
        f"EXECUTE FUNCTION {schema}.full_up()"
    )
    with pytest.raises(error, match=text):
        store.commit(published(1), store.epoch)
    assert store.load(10).next_number == 1
    postgresql.sql(f"DROP TRIGGER t ON {schema}.bodies")
    store.commit(published(1), store.epoch)
    assert bodies(store, 1) == [b"body"]


def test_a_session_ended_while_nothing_was_going_on(
    opening: Opener, postgresql: postgres.Server
) -> None:
    store = opening(postgres.target(postgresql, postgres.schema()))
    for number in (1, 2, 3):
        postgresql.sql(f"SELECT pg_terminate_backend({store_pid(store)})")
        store.commit(published(number), store.epoch)
    assert store.load(10).next_number == 4


# -- what an administrator may have got wrong ------------------------------------------------------


def test_what_is_set_up_wrong_is_said(
    opening: Opener, own: postgres.Server, tmp_path: Path
) -> None:
    own.sql("CREATE ROLE small LOGIN")
    own.sql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    own.sql("CREATE SCHEMA theirs; CREATE TABLE theirs.t (x integer)")
    with pytest.raises(StoreError, match="no HQ in"):
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
    postgres.until(lambda: own.sql("SHOW fsync") == [["off"]])
    with pytest.raises(StoreError, match="fsync"):
        opening(postgres.target(own))


def test_tls_to_the_server(opening: Opener, postgresql: postgres.Server, tmp_path: Path) -> None:
    """The certificate is checked against the named CA, and HQ shows its own where the server
    wants one.
    """
    ours, theirs = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    ours.configure_trust(context)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    mine = ours.issue_cert("hq@example.org")
    names = {"ours": ours.cert_pem, "theirs": theirs.cert_pem}
    names |= {"certificate": mine.cert_chain_pems[0], "key": mine.private_key_pem}
    for name, blob in names.items():
        blob.write_to_path(tmp_path / name)
    with TlsFront(postgresql.port, context) as front:
        target = attrs.evolve(
            postgres.target(postgresql, postgres.schema()),
            hosts=(("127.0.0.1", front.port),),
            tls="verify",
            tls_ca=tmp_path / "ours",
            tls_certificate=tmp_path / "certificate",
            tls_key=tmp_path / "key",
        )
        store = opening(target)
        store.commit(published(1, b"x" * 300_000), store.epoch)
        assert bodies(store, 1) == [b"x" * 300_000]
        store.close()
        with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            opening(attrs.evolve(target, tls_ca=tmp_path / "theirs"))
        with pytest.raises(StoreUnavailable):
            opening(attrs.evolve(target, tls_certificate=None, tls_key=None))
        with pytest.raises(ConfigError, match="tls"):
            opening(attrs.evolve(target, tls_ca=tmp_path / "nowhere"))
        opening(attrs.evolve(target, tls="unverified", tls_ca=None)).close()


def test_a_newer_schema_is_refused_and_left_alone(
    opening: Opener, postgresql: postgres.Server
) -> None:
    schema = postgres.schema()
    opening(postgres.target(postgresql, schema)).close()
    postgresql.sql(f"COMMENT ON SCHEMA {schema} IS 'cipherbox 99'")
    with pytest.raises(StoreError, match="newer program"):
        opening(postgres.target(postgresql, schema))


@pytest.mark.parametrize("version", [1, schema_module.OLDEST])
def test_an_older_schema_waits_for_the_word_and_what_is_too_old_is_refused(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """As an HQ of 0.5.0 left it, or one of before."""
    target, steps = postgres.target(postgresql, postgres.schema()), schema_module.scripts()
    with monkeypatch.context() as patch:
        patch.setattr(schema_module, "scripts", lambda: steps[:version])
        first = opening(target)
        first.put_setting("kept", b"x")
        first.close()
    if version < schema_module.OLDEST:
        for upgrade in (False, True):
            with pytest.raises(SchemaTooOld, match=r"before 0\.5\.0"):
                opening(target, upgrade=upgrade)
        return
    with pytest.raises(StoreError, match=f"older schema {version}"):
        opening(target)
    again = opening(target, create=False, upgrade=True)
    assert again.get_setting("kept") == b"x"
    again.commit(published(1, b"x"), again.epoch)
    assert bodies(again, 1) == [b"x"]


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
    with closing(postgres.connect(postgresql, target.schema)) as tool:
        assert lease.current(tool).name == ""
    again = opening(target)
    assert bodies(again, 1) == [b"x" * 200_000]


def test_a_clock_that_was_set_back_gives_no_number_twice(
    opening: Opener, postgresql: postgres.Server
) -> None:
    store = opening(postgres.target(postgresql, postgres.schema()))
    store.commit(published(1, b"a", b"b"), store.epoch)
    changes = published(3)
    changes.envelopes = [
        e._replace(accepted_at=e.accepted_at - 86_400_000) for e in changes.envelopes
    ]
    store.commit(changes, store.epoch)
    assert store.load(10).next_number == 4


def test_it_opens_where_there_is_no_room_for_the_months_ahead(
    opening: Opener, own: postgres.Server
) -> None:
    """Rows of a month without a table of its own go to the partition `other`."""
    target = postgres.target(own)
    opening(target).close()
    month = schema_module.month_of(time.time_ns() // 1_000_000)
    for table in schema_module.PARTITIONED:
        for one in (month, schema_module.month_of(time.time_ns() // 1_000_000 + 31 * 86_400_000)):
            own.sql(f"DROP TABLE {target.schema}.{schema_module.name_of(table, one)}")
    own.sql(
        "CREATE FUNCTION public.full_up() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN "
        "RAISE 'no space left' USING ERRCODE = '53100'; END$$; CREATE EVENT TRIGGER t ON "
        "ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION public.full_up()"
    )
    store = opening(target)
    assert month not in schema_module.months(store._writer())
    store.commit(published(1), store.epoch)
    assert bodies(store, 1) == [b"body"]


def test_somebody_who_reads_a_month_delays_only_its_end(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LOCK_MS", 50)
    target = postgres.target(postgresql, postgres.schema())
    store = opening(target)
    past = 1_700_000_000_000
    month = schema_module.month_of(past)
    assert schema_module.make_month(store._writer(), month)
    cutoffs = Cutoffs(schema_module.ends_at_ms(month), 0, 0)
    reader = postgres.connect(postgresql, target.schema)
    reader.script("BEGIN; SELECT count(*) FROM envelopes")
    store.commit(Changes(retention=cutoffs), store.epoch)
    assert not store.retention_due(cutoffs)  # not now
    assert month in schema_module.months(store._writer())
    reader.script("COMMIT")
    reader.close()
    store.commit(Changes(retention=cutoffs), store.epoch)
    assert month not in schema_module.months(store._writer())


def test_an_older_schema_is_upgraded_when_asked_after_a_copy(
    opening: Opener, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = postgres.target(postgresql, postgres.schema())
    store = opening(target)
    store.commit(published(1), store.epoch)
    store.close()
    steps = schema_module.scripts()
    monkeypatch.setattr(
        schema_module, "scripts", lambda: [*steps, "CREATE TABLE later (x integer); SELECT 1 / 0"]
    )
    with pytest.raises(StoreError, match="cipherbox store upgrade"):
        opening(target)
    with pytest.raises(StoreUnavailable, match="division by zero"):
        opening(target, upgrade=True)
    monkeypatch.setattr(
        schema_module, "scripts", lambda: [*steps, "CREATE TABLE later (x integer)"]
    )
    store = opening(target, upgrade=True)
    assert bodies(store, 1) == [b"body"]
    copy = f"{target.schema}_before_{len(steps) + 1}"
    assert postgresql.sql(f"SELECT number, data FROM {copy}.bodies") == [[1, b"body"]]
    assert postgresql.sql(f"SELECT count(*) FROM {copy}.envelopes") == [[1]]
    store.close()
    opening(target).close()
    postgresql.sql(f"DROP SCHEMA {copy} CASCADE")
