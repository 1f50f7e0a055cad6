"""A running HQ at PostgreSQL, which stalls, is killed and comes back, under clients that publish
and receive.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from cipherbox.cli.doctor.hq import look
from cipherbox.config.settings import ServerConfig, load_server_config, write_server_config
from cipherbox.errors import DiskFull
from cipherbox.server import app
from cipherbox.server.connection.peer import STORE_AVAILABLE, STORE_UNAVAILABLE
from cipherbox.server.operations import standbys
from cipherbox.store.copying import copy
from cipherbox.store.port import Store
from cipherbox.store.postgres import schema as schema_module
from cipherbox.store.postgres import store
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE
from cipherbox.wire import frames
from cipherbox.wire.connection import Deliveries
from tests import postgres
from tests.server.hq import Raw, running

STOP, GO_ON = 19, 18  # SIGSTOP, SIGCONT


def at(server: postgres.Server, schema: str = "cipherbox") -> Callable[[ServerConfig], Store]:
    """Opens HQ's store there; the first time with what `init` put into SQLite."""

    def opened(config: ServerConfig) -> Store:
        target = postgres.target(server, schema)
        store = PostgresStore(target, config.directory, create=True, limits=config.limits)
        if not store.load(1).clients:
            with closing(SqliteSource(config.directory, DATABASE)) as source:
                copy(source, store)
        return store

    return opened


async def consume(raw: Raw, queue: str) -> None:
    await raw.ask(frames.Consume, 1, queue, 100, 1 << 20)


async def test_clients_are_told_while_the_database_is_silent(
    tmp_path: Path, own: postgres.Server
) -> None:
    async with running(tmp_path / "hq", opener=at(own)) as here:
        lab, center = await here.person("LAB"), await here.person("CENTER")
        sender = await here.dial(lab)
        assert isinstance(await sender.publish(lab.seal(center).raw), frames.Confirm)
        pids = [
            pid
            for (pid,) in own.sql(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'cipherbox' "
                "AND pid <> pg_backend_pid()"
            )
        ]
        for pid in pids:
            os.kill(pid, STOP)
        try:
            async with trio.open_nursery() as nursery:

                async def until_told() -> None:
                    while not sender.told:
                        await trio.sleep(0.01)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_told)
                await sender.publish(lab.seal(center).raw)
                raise AssertionError("it was confirmed")
            assert sender.told == [STORE_UNAVAILABLE]
        finally:
            for pid in pids:
                os.kill(pid, GO_ON)
        assert isinstance(await sender.next(), frames.Confirm)
        with trio.fail_after(60):
            while STORE_AVAILABLE not in sender.told:
                await sender.publish(lab.seal(center).raw)


async def test_a_killed_database_loses_nothing_that_was_confirmed(
    tmp_path: Path, own: postgres.Server
) -> None:
    async with running(tmp_path / "hq", opener=at(own)) as here:
        lab, center = await here.person("LAB"), await here.person("CENTER")
        sender = await here.dial(lab)
        sealed = [lab.seal(center, text=f"{n}" * 30_000) for n in range(6)]
        for one in sealed[:3]:
            assert isinstance(await sender.publish(one.raw), frames.Confirm)
        own.kill()
        answer = await sender.publish(sealed[3].raw)
        assert answer is None or isinstance(answer, frames.Error | frames.GoingAway)
        own.start()
        with trio.fail_after(60):
            while True:  # HQ closes what was open when it lost the database
                again = await here.dial(lab, hello=False)
                try:
                    await again.hello()
                    answer = await again.publish(sealed[3].raw)
                except (
                    AssertionError,
                    OSError,
                    trio.BrokenResourceError,
                    trio.ClosedResourceError,
                ):
                    answer = None
                if isinstance(answer, frames.Confirm):
                    break
                await trio.sleep(0.2)
        for one in sealed[3:]:
            # the first of them once more
            assert isinstance(await again.publish(one.raw), frames.Confirm)
        receiver = await here.dial(center)
        await consume(receiver, "box.CENTER")
        found: list[bytes] = []
        while len(found) < 6:
            event = await receiver.next()
            if isinstance(event, Deliveries):
                found += [item[4] for item in event.entries]
        assert found == [one.raw for one in sealed]


async def test_a_full_disk_of_the_database_ends_no_hq(
    tmp_path: Path, own: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when it says that it lives, nor when it makes the tables of the months ahead."""
    monkeypatch.setattr(app, "RENEW_S", 0.05)
    monkeypatch.setattr(store, "MONTHS_S", 0.0)
    async with running(tmp_path / "hq", opener=at(own)) as here:
        lab, center = await here.person("LAB"), await here.person("CENTER")
        sender = await here.dial(lab)
        own.sql(
            "CREATE FUNCTION public.full_disk() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END$$; "
            "CREATE FUNCTION public.full_row() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'no space left' USING ERRCODE = '53100'; END$$"
        )
        schema = postgres.target(own).schema
        ahead = schema_module.month_of(time.time_ns() // 1_000_000 + 31 * 86_400_000)
        for table in schema_module.PARTITIONED:
            own.sql(f"DROP TABLE {schema}.{schema_module.name_of(table, ahead)}")
        own.sql(
            "CREATE EVENT TRIGGER t ON ddl_command_start WHEN TAG IN ('CREATE TABLE') "
            "EXECUTE FUNCTION public.full_disk()"
        )
        await trio.sleep(0.5)
        assert isinstance(await sender.publish(lab.seal(center).raw), frames.Confirm)
        own.sql(
            f"CREATE TRIGGER t BEFORE UPDATE ON {schema}.writer FOR EACH ROW EXECUTE FUNCTION "
            "public.full_row()"
        )
        await trio.sleep(0.5)
        refused = await sender.publish(lab.seal(center).raw)
        assert isinstance(refused, frames.Error)
        assert refused.code == DiskFull.code
        own.sql(f"DROP EVENT TRIGGER t; DROP TRIGGER t ON {schema}.writer")
        with trio.fail_after(60):
            while not isinstance(
                await (await here.dial(lab)).publish(lab.seal(center).raw), frames.Confirm
            ):
                await trio.sleep(0.1)
            name = schema_module.name_of("envelopes", ahead)
            while not own.sql(
                f"SELECT 1 FROM pg_tables WHERE schemaname = '{schema}' AND tablename = '{name}'"
            ):
                await trio.sleep(0.1)


async def test_hq_knows_its_standby_and_misses_it(
    tmp_path: Path, postgresql: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second HQ waits, takes over, and says that nobody waits for it."""
    for name in ("RENEW_S", "STANDBY_S"):
        monkeypatch.setattr(app, name, 0.1)
    monkeypatch.setattr(app, "STOOD_BY_S", 0.0)
    monkeypatch.setattr(standbys, "MISSED_S", 0.0)
    told, schema = trio.Event(), postgres.schema()
    async with trio.open_nursery() as nursery:
        async with running(tmp_path / "hq", opener=at(postgresql, schema)) as here:
            shutil.copytree(here.hq.config.directory, tmp_path / "second")
            boss = await here.person("BOSS", role="admin")
            admin = await here.dial(boss)
            assert await waiting(admin) == []
            assert "standby" not in await named(admin, "alerts")
            config = load_server_config(tmp_path / "second")
            second = attrs.evolve(
                config,
                database=attrs.evolve(
                    config.database,
                    kind="postgresql",
                    hosts=f"127.0.0.1:{postgresql.port}",
                    schema=schema,
                    name="postgres",
                    tls="off",
                ),
            )

            write_server_config(second)

            async def stand_by(*, task_status: trio.TaskStatus[app.Served]) -> None:
                await app.serve(second, waiting=lambda _: told.set(), task_status=task_status)

            took_over: list[app.Served] = []

            async def begin() -> None:
                took_over.append(await nursery.start(stand_by))

            nursery.start_soon(begin)
            await told.wait()
            with trio.fail_after(60):
                while not (rows := await waiting(admin)):
                    await trio.sleep(0.05)
            (row,) = rows
            assert row["labels"]["standby"].endswith(f"/{os.getpid()}")
            assert row["labels"]["address"] == "127.0.0.1"
            found = await trio.to_thread.run_sync(look, second.directory)
            (said,) = [one.text for one in found if one.about == "standby"]
            assert said.endswith(f"/{os.getpid()} waits to take over, connected from 127.0.0.1")
        with trio.fail_after(60):
            while not took_over:
                await trio.sleep(0.05)
        host, port = took_over[0].addresses[0]
        here.address = f"{host}:{port}"
        admin = await here.dial(boss)
        assert await waiting(admin) == []
        assert "standby" in await named(admin, "alerts")
        await admin.stream.aclose()
        nursery.cancel_scope.cancel()


async def named(admin: Raw, what: str) -> list[str]:
    return [row["name"] for row in await listed(admin, what)]


async def waiting(admin: Raw) -> list[Any]:
    rows = await listed(admin, "metrics")
    (count,) = (row["value"] for row in rows if row["name"] == "cipherbox_standbys")
    found = [row for row in rows if row["name"] == "cipherbox_standby_waiting_seconds"]
    assert len(found) == count
    return found


async def listed(admin: Raw, what: str) -> list[Any]:
    found: list[Any] = orjson.loads((await admin.ask(frames.List, what, "", "")).rows)
    return found
