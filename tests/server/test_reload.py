"""Reload, drain and kick on a running HQ: nothing half, nobody dropped who should not be."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import trio

from cipherbox import clock, pki
from cipherbox.config.settings import load_server_config, secret_key
from cipherbox.errors import ConfigError
from cipherbox.ops.logs import ROOT
from cipherbox.portable import write_private
from cipherbox.server.hq import HQ
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import frames
from tests.server.clocks import confirmed_clock
from tests.server.hq import BIG, Raw, Running, codec_name, prepare, prepare_another, running

pytestmark = pytest.mark.usefixtures("logs_as_before")


def edit(hq: HQ, old: str, new: str) -> None:
    text = hq.config.file.read_text()
    assert old in text
    hq.config.file.write_text(text.replace(old, new, 1))


def new_certificate(r: Running, days: int = 100, *, authority: pki.Authority | None = None) -> None:
    """HQ's certificate and key anew, as renewal writes them."""
    tls, key = r.hq.config.tls, pki.new_key()
    certificate = pki.issue_server(authority or r.issuing, key.public_key(), "DC-HQ")
    tls.certificate.write_bytes(pki.pem(certificate))
    write_private(tls.key, pki.key_pem(key, secret_key(r.hq.config.encryption.service_key_file)))


def shown(raw: Raw) -> int:
    """The serial number of the certificate that HQ showed this connection."""
    certificate = raw.stream.peer_certificate()
    assert certificate is not None
    return certificate.serial_number


async def alive(raw: Raw) -> None:
    raw.correlation += 1
    await raw.send(frames.Ping(raw.correlation))
    assert isinstance(await raw.next(), frames.Pong)


async def admin_of(r: Running) -> Raw:
    return await r.dial(await r.person("BOSS", role="admin"))


async def test_a_new_certificate_is_shown_to_new_connections_and_drops_none(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, admin = await r.client("FL-LAB"), await admin_of(r)
        old_key = r.hq.log_key
        new_certificate(r)
        answer = await admin.ask(frames.Reload)
        assert isinstance(answer, frames.Listing), answer
        (row,) = orjson.loads(answer.rows)
        assert (row["name"], row["effect"]) == ("certificate server", "now")
        again = await r.client("FL-LAB")
        assert shown(again) == r.hq.trust.server.serial_number != shown(lab)
        assert r.hq.log_key[:32] == old_key[:32]  # the same log, certified anew
        assert r.hq.log_key != old_key
        for raw in (lab, again, admin):
            await alive(raw)
        await r.person("CA-RC")
        assert isinstance(
            await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw), frames.Confirm
        )


async def test_settings_count_now_or_are_named_for_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        admin = await admin_of(r)
        edit(r.hq, 'level = "INFO"', 'level = "DEBUG"')
        edit(r.hq, 'directory = ""', 'directory = "logs"')
        edit(r.hq, "metadata_days = 400", "metadata_days = 7")
        edit(r.hq, 'address = "127.0.0.1:1"', 'address = "hq.example.org:7443"')
        edit(r.hq, "pool_size = 3", "pool_size = 5")
        rows = {
            row["name"]: row["effect"]
            for row in orjson.loads((await admin.ask(frames.Reload)).rows)
        }
        assert rows == {
            "logging.level": "now",
            "logging.directory": "now",
            "retention.metadata_days": "now",
            "server.address": "now",
            "database.pool_size": "at the next start",
        }
        assert logging.getLogger(ROOT).level == logging.DEBUG
        assert (r.hq.config.directory / "logs" / "server_debug.log").exists()
        assert r.hq.config.retention.metadata_days == 7
        assert r.hq.enrolments.address == "hq.example.org:7443"
        assert r.hq.config.database.pool_size == 3
        assert orjson.loads((await admin.ask(frames.Reload)).rows) == [
            {"name": "database.pool_size", "was": 3, "now": 5, "effect": "at the next start"}
        ]


async def test_the_file_that_was_named_is_read_again(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    other = config.file.rename(config.file.with_name("other.toml"))
    loaded = load_server_config(other)
    assert loaded.file == other
    store = open_store(loaded.directory)
    try:
        hq = HQ(loaded, store)
        edit(hq, "keep = 14", "keep = 15")
        assert [(d.name, d.effect) for d in hq.reload()] == [("logging.keep", "now")]
    finally:
        store.close()


def cut(path: Callable[[HQ], Path]) -> Callable[[Running], None]:
    """A file that is half written."""

    def spoil(r: Running) -> None:
        file = path(r.hq)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return spoil


def first_lines(r: Running) -> None:
    """Cut between two lines: good TOML, and the rest would quietly be as by default."""
    file = r.hq.config.file
    file.write_text(file.read_text().partition("[retention]")[0])


def other_key(r: Running) -> None:
    shutil.copy(r.hq.config.ca.issuing_key, r.hq.config.tls.key)


def foreign(r: Running) -> None:
    new_certificate(r, authority=pki.new_issuing("X", pki.new_root("X")))


def ended(r: Running) -> None:
    before = clock.now_s
    clock.now_s = lambda: before() - 10 * 365 * 86_400
    try:
        new_certificate(r)
    finally:
        clock.now_s = before


def other_root(r: Running) -> None:
    other = prepare_another(r.hq.config.directory.parent / "other" / "hq")
    for name in (
        "tls/server.crt",
        "tls/server.key",
        "ca/root.crt",
        "ca/issuing.crt",
        "ca/issuing.key",
        "secrets/service.key",
    ):
        shutil.copy(other.directory / name, r.hq.config.directory / name)


def logs_in_a_file(r: Running) -> None:
    (r.hq.config.directory / "file").write_text("")
    edit(r.hq, 'directory = ""', 'directory = "file/logs"')
    new_certificate(r)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut(lambda hq: hq.config.file), "cipherbox.toml"),
        (
            first_lines,
            "has no [alerts], [clock], [limits], [metrics], [retention] any more: is it half "
            "written?",
        ),
        (lambda r: r.hq.config.file.write_bytes(b""), "half written"),
        (
            lambda r: r.hq.config.file.write_bytes(r.hq.config.file.read_bytes() + b"[lim"),
            "cipherbox.toml",
        ),
        (lambda r: r.hq.config.file.unlink(), "does not exist"),
        (lambda r: edit(r.hq, "level =", "levle ="), "did you mean 'level'"),
        (lambda r: edit(r.hq, '"daily"', '"weekly"'), "one of never, hourly, daily"),
        (cut(lambda hq: hq.config.tls.certificate), "server.crt"),
        (cut(lambda hq: hq.config.tls.key), "server.key"),
        (lambda r: r.hq.config.tls.certificate.unlink(), "server.crt"),
        (lambda r: r.hq.config.tls.key.chmod(0o644), "server.key"),
        (other_key, "is not the key of"),
        (foreign, "was not issued by"),
        (ended, "ended on"),
        (other_root, "another root CA"),
        (lambda r: r.hq.config.encryption.service_key_file.unlink(), "service.key"),
        (logs_in_a_file, "[logging] directory"),
    ],
)
async def test_what_is_wrong_changes_nothing(
    tmp_path: Path, spoil: Callable[[Running], object], says: str
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, admin = await r.client("FL-LAB"), await admin_of(r)
        before = (r.hq.config, r.hq.context, r.hq.trust.material, r.hq.log_key)
        spoil(r)
        answer = await admin.ask(frames.Reload)
        assert isinstance(answer, frames.Error)
        assert codec_name(answer) == ConfigError.name
        assert says in answer.message
        assert (r.hq.config, r.hq.context, r.hq.trust.material, r.hq.log_key) == before
        await alive(lab)
        await alive(await r.client("FL-LAB"))


async def test_a_drain_lets_go_what_waits_takes_nothing_new_and_ends(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, center, admin = await r.client("FL-LAB"), await r.client("CA-RC"), await admin_of(r)
        people = r.people
        away = await r.person("NY-RC")
        await lab.publish(people["FL-LAB"].seal(away).raw)  # for somebody who is not here
        await lab.publish(people["FL-LAB"].seal(people["CA-RC"]).raw)
        assert isinstance(await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG), frames.Ok)
        assert (await center.next()).entries
        assert await admin.ask(frames.Drain, True, 60) == frames.Ok(admin.correlation, 1)
        assert (
            await lab.refused(frames.Send, 0, 0, people["FL-LAB"].seal(people["CA-RC"]).raw)
            == "draining"
        )
        await trio.sleep(1.2)
        assert not r.stopped.is_set()  # CA-RC has not acknowledged
        assert isinstance(
            await center.ask(frames.Ack, "box.CA-RC", [frames.Range(1, 1)]), frames.AckConfirmed
        )
        with trio.fail_after(60):
            await r.stopped.wait()
    async with running(tmp_path / "hq") as r:
        r.people.update(people)
        assert r.hq.engine.broker.state.queues["box.NY-RC"].depth == 1
        assert r.hq.engine.broker.state.queues["box.CA-RC"].depth == 0


async def test_a_drain_can_be_taken_back_and_has_an_end(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, center, admin = await r.client("FL-LAB"), await r.client("CA-RC"), await admin_of(r)
        one = r.people["FL-LAB"].seal(r.people["CA-RC"]).raw
        await lab.publish(one)
        await center.ask(frames.Fetch, "box.CA-RC", 1, BIG)
        await admin.ask(frames.Drain, True, 3600)
        assert (
            await lab.refused(frames.Send, 0, 0, r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
            == "draining"
        )
        await admin.ask(frames.Drain, False, 0)
        confirm = await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
        assert isinstance(confirm, frames.Confirm)
        # one that nobody acknowledges holds it up so long, and no longer
        await admin.ask(frames.Drain, True, 1)
        with trio.fail_after(60):
            await r.stopped.wait()


async def test_kicked_is_told_why_and_may_come_back(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        first, second, admin = await r.client("FL-LAB"), await r.client("FL-LAB"), await admin_of(r)
        rows = {row["connection"]: row for row in r.hq.connections.rows()}
        assert {row["name"] for row in rows.values()} == {"FL-LAB", "BOSS"}
        assert all(row["connected_at"] for row in rows.values())
        number = min(n for n, row in rows.items() if row["name"] == "FL-LAB")
        assert await admin.ask(frames.Kick, "FL-LAB", number, "wrong cable") == frames.Ok(
            admin.correlation, 1
        )
        word = await first.next()
        assert isinstance(word, frames.GoingAway)
        assert word.message == "wrong cable"
        assert await first.next() is None
        await alive(second)
        assert (await admin.ask(frames.Kick, "FL-LAB", 0, "")).count == 1
        assert "an admin closed" in (await second.next()).message
        await alive(await r.client("FL-LAB"))
        assert await admin.refused(frames.Kick, "NOBODY", 0, "") == "not-found"
        assert await admin.refused(frames.Kick, "FL-LAB", 999, "") == "not-found"
        assert r.hq.engine.counts.kicked_connections == 2


async def test_lists_of_figures_and_alerts_are_the_admins(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, admin = await r.client("FL-LAB"), await admin_of(r)
        for what in ("metrics", "alerts", "connections"):
            assert await lab.refused(frames.List, what, "", "") == "forbidden"
        for what in (frames.Reload, frames.Drain, frames.Kick):
            fields = {frames.Reload: (), frames.Drain: (True, 1), frames.Kick: ("BOSS", 0, "")}[
                what
            ]
            raw = await r.client("FL-LAB")
            assert await raw.refused(what, *fields) == "unexpected-frame"
        rows = orjson.loads(
            (await admin.ask(frames.List, "metrics", "cipherbox_connected_clients", "")).rows
        )
        assert rows == [{"name": "cipherbox_connected_clients", "labels": {}, "value": 2}]
        assert orjson.loads((await admin.ask(frames.List, "alerts", "", "")).rows) == []
        r.hq.drain.begin(100, "BOSS")
        r.hq.engine.outage = "gone"
        found = orjson.loads((await admin.ask(frames.List, "alerts", "", "")).rows)
        assert [row["name"] for row in found] == ["store", "draining"]
        r.hq.engine.outage = ""


async def test_alerts_see_ends_and_old_queues_coming(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from cipherbox.server.operations.alerts import Watch, alerts

    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        await lab.publish(r.people["FL-LAB"].seal(await r.person("CA-RC")).raw)
        clock_ms = r.hq.clock_ms
        with confirmed_clock(r.hq, 300):
            found = {alert.name: alert for alert in alerts(r.hq)}
            watch = Watch(r.hq)
            watch.look()
            said = [x for x in caplog.records if hasattr(x, "alert")]
            assert {x.alert for x in said} == set(found)
            watch.look()  # once is enough,
            assert len([x for x in caplog.records if hasattr(x, "alert")]) == len(said)
            r.hq.clock_ms = lambda: clock_ms() + 50 * 3600 * 1000  # for a day
            watch.look()
            assert len([x for x in caplog.records if hasattr(x, "alert")]) == 2 * len(said)
        r.hq.clock_ms = clock_ms
        assert set(found) == {"certificate-crl", "old-queue"}
        assert found["certificate-crl"].severity == "critical"
        assert "box.CA-RC" in found["old-queue"].text
