"""Alerts: told once when they begin and once when they end, by each way, also over a restart."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
import trustme

from cipherbox import alerting
from cipherbox.alerting import Alert, Teller, try_ways
from cipherbox.client.home import load_home
from cipherbox.client.watch import conditions
from cipherbox.config.alerts import AlertSettings, check_alerts
from cipherbox.errors import ConfigError

STUCK = Alert("stuck", "warning", "3 messages wait")
SECRET = "Bearer s3cret-of-the-webhook"


def recorder(directory: Path) -> tuple[AlertSettings, Path]:
    """A command that appends what it is told to a file."""
    file = directory / "told.jsonl"
    program = directory / "tell.py"
    program.write_text(f"import sys\nopen({str(file)!r}, 'ab').write(sys.stdin.buffer.read())\n")
    return AlertSettings(command=f"{sys.executable} -S {program}"), file


def told(file: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


async def test_one_at_the_start_and_one_at_the_end_also_over_a_restart(tmp_path: Path) -> None:
    settings, file = recorder(tmp_path)
    now = 1_000_000.0

    def teller() -> Teller:
        return Teller("FL-LAB", settings, tmp_path, clock=lambda: now)

    first = teller()
    await first.look([STUCK])
    await first.look([STUCK])
    assert [(e["alert"], e["state"], e["who"]) for e in told(file)] == [
        ("stuck", "begins", "FL-LAB")
    ]
    again = teller()  # another process
    await again.look([STUCK])
    assert len(told(file)) == 1
    now += 60
    await again.look([])
    now += 60
    await again.look([STUCK])  # it came back within minutes: the same alert
    assert len(told(file)) == 1
    now += 60
    await again.look([])
    now += alerting.END_AFTER_S
    await teller().look([])
    assert [e["state"] for e in told(file)] == ["begins", "ends"]
    assert told(file)[1]["since"] == told(file)[0]["since"]
    await teller().look([])
    assert len(told(file)) == 2
    assert (tmp_path / "alerts.json").stat().st_mode & 0o077 == 0


async def test_two_of_a_kind_are_two(tmp_path: Path) -> None:
    settings, file = recorder(tmp_path)
    await Teller("A", settings, tmp_path).look(
        [STUCK._replace(subject="1"), STUCK._replace(subject="2")]
    )
    assert sorted(e["subject"] for e in told(file)) == ["1", "2"]


async def test_what_cannot_be_told_is_told_later_and_said(tmp_path: Path) -> None:
    good, file = recorder(tmp_path)
    heard: list[tuple[str, str]] = []
    bad = AlertSettings(command="/nowhere/at/all")
    teller = Teller("A", bad, tmp_path, lambda *words: heard.append(words), pause_s=0.0)
    await teller.look([STUCK])
    assert heard == [
        ("[alerts] command did not take an alert", "/nowhere/at/all: No such file or directory")
    ]
    teller.settings = good
    await teller.look([STUCK])
    assert [e["state"] for e in told(file)] == ["begins"]


async def test_a_full_disk_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, file = recorder(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(alerting, "write_atomic", full)
    teller = Teller("A", settings, tmp_path)
    for _ in range(3):
        await teller.look([STUCK])
    assert len(told(file)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"alert": [], "since": 0}}',
        b'{"a": {"alert": ["stuck", "warning", "x", ""], "since": "x", "seen": [], "told": true}}',
    ],
)
async def test_a_damaged_state_ends_nothing(tmp_path: Path, content: bytes) -> None:
    settings, file = recorder(tmp_path)
    (tmp_path / "alerts.json").write_bytes(content)
    await Teller("A", settings, tmp_path).look([STUCK])
    assert len(told(file)) == 1


async def test_a_command_that_hangs_or_fails_is_given_up(tmp_path: Path) -> None:
    assert (await try_ways(AlertSettings(command="sleep 600", timeout_s=0.2), "A"))[
        "command"
    ].endswith("did not end within 0.2 s")
    assert await try_ways(AlertSettings(command="false"), "A") == {"command": "false ended with 1"}


# -- webhook ---------------------------------------------------------------------------------------


@contextmanager
def webhook(context: ssl.SSLContext | None, status: int = 204) -> Iterator[tuple[int, list[Any]]]:
    got: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers, orjson.loads(body)))
            self.send_response(status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(HTTPServer):
        def handle_error(self, *_: object) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_webhook_gets_the_json_over_verified_tls(
    tmp_path: Path, authority: trustme.CA
) -> None:
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    authority.cert_pem.write_to_path(ca)
    token.write_text(f"{SECRET}\n")
    token.chmod(0o600)
    with webhook(server_side(authority, "localhost")) as (port, got):
        settings = AlertSettings(
            webhook=f"https://localhost:{port}/x?y=1", webhook_authorization_file=token
        )
        settings = attrs.evolve(settings, webhook_ca=ca)
        assert await try_ways(settings, "DC-HQ") == {"webhook": ""}
        ((headers, event),) = got
        assert headers["Authorization"] == SECRET
        assert (event["state"], event["who"]) == ("test", "DC-HQ")
        refused = await try_ways(attrs.evolve(settings, webhook_ca=None), "A")
        assert "certificate verify failed" in refused["webhook"]
        assert len(got) == 1
    with webhook(server_side(authority, "another.example")) as (port, got):
        wrong = await try_ways(attrs.evolve(settings, webhook=f"https://localhost:{port}/"), "A")
        assert "match" in wrong["webhook"] or "localhost" in wrong["webhook"]
        assert got == []


@pytest.mark.parametrize("status", [302, 401, 500])
async def test_anything_but_success_is_a_failure_and_nothing_is_followed(status: int) -> None:
    with webhook(None, status) as (port, got):
        found = await try_ways(AlertSettings(webhook=f"http://127.0.0.1:{port}/"), "A")
    assert found == {"webhook": f"127.0.0.1 answered {status}"}
    assert len(got) == 1


async def test_a_silent_webhook_is_given_up() -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = silent.socket.getsockname()[1]
    with trio.fail_after(60):
        found = await try_ways(
            AlertSettings(webhook=f"http://127.0.0.1:{port}/", timeout_s=0.2), "A"
        )
    assert found["webhook"]
    await silent.aclose()


# -- mail ------------------------------------------------------------------------------------------


async def smtp(stream: trio.abc.Stream, lines: list[str], context: ssl.SSLContext | None) -> None:
    """As much of a mail server as a client needs, RFC 5321."""
    buffer = b""

    async def line() -> str:
        nonlocal buffer
        while b"\r\n" not in buffer:
            data = await stream.receive_some(4096)
            if not data:
                raise trio.BrokenResourceError
            buffer += bytes(data)
        one, _, buffer = buffer.partition(b"\r\n")
        return one.decode()

    async def say(text: str) -> None:
        await stream.send_all(f"{text}\r\n".encode())

    try:
        await say("220 little")
        while True:
            word = await line()
            lines.append(word)
            verb = word.split(" ")[0].upper()
            if verb == "EHLO":
                await say(
                    f"250-little\r\n{'250-STARTTLS' if context else '250-AUTH PLAIN'}\r\n250 "
                    "8BITMIME"
                )
            elif verb == "STARTTLS" and context is not None:
                await say("220 go")
                stream, context = trio.SSLStream(stream, context, server_side=True), None  # type: ignore[type-var]
            elif verb == "AUTH":
                await say("235 good")
            elif verb == "DATA":
                await say("354 go")
                while (one := await line()) != ".":
                    lines.append(one)
                await say("250 taken")
            elif verb == "QUIT":
                await say("221 bye")
                return
            else:
                await say("250 ok")
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_mail_goes_over_verified_tls_with_a_password(
    tmp_path: Path, authority: trustme.CA, tls: str
) -> None:
    ca, password = tmp_path / "ca.pem", tmp_path / "password"
    authority.cert_pem.write_to_path(ca)
    password.write_text("correct horse\n")
    password.chmod(0o600)
    context, lines = server_side(authority, "localhost"), []  # type: ignore[var-annotated]

    async def handle(stream: trio.SocketStream) -> None:
        if tls == "tls":
            await smtp(trio.SSLStream(stream, context, server_side=True), lines, None)
        else:
            await smtp(stream, lines, context)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        settings = AlertSettings(
            mail="ops@hospital.example",
            mail_from="cipherbox@hospital.example",
            mail_server=f"localhost:{port}",
            mail_tls=tls,
            mail_user="box",
            mail_password_file=password,
            mail_ca=ca,
            timeout_s=10.0,
        )
        found = await try_ways(settings, "DC-HQ")
        assert found == {"mail": ""}, lines
        assert any(line.startswith("Subject: CipherBox DC-HQ: TEST: ") for line in lines)
        assert any(line.startswith("AUTH") for line in lines)
        if tls == "starttls":
            assert lines.index("STARTTLS") < next(
                i for i, x in enumerate(lines) if x.startswith("AUTH")
            )
        lines.clear()
        refused = await try_ways(attrs.evolve(settings, mail_ca=None), "A")
        assert "certificate verify failed" in refused["mail"]
        assert not any(line.startswith("AUTH") for line in lines)
        nursery.cancel_scope.cancel()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"command": "a 'b"}, "command"),
        ({"webhook": "ftp://x"}, "https://host/path"),
        ({"webhook": "https://user:hunter2@x/"}, "webhook_authorization_file"),
        ({"webhook": "http://elsewhere.example/"}, "this machine alone"),
        ({"mail": "a@b.example"}, "mail_from"),
        ({"mail": "nobody", "mail_from": "a@b.c", "mail_server": "x:25"}, "not a mail address"),
        (
            {"mail": "a@b.c\nBcc: x@y.z", "mail_from": "a@b.c", "mail_server": "x:25"},
            "not a mail address",
        ),
        ({"mail": "a@b.c", "mail_from": "a@b.c", "mail_server": "x"}, "host:port"),
        (
            {"mail": "a@b.c", "mail_from": "a@b.c", "mail_server": "x:25", "mail_tls": "off"},
            "this machine alone",
        ),
        (
            {"mail": "a@b.c", "mail_from": "a@b.c", "mail_server": "x:25", "mail_user": "u"},
            "mail_password_file",
        ),
        ({"quiet": "FL-LAB"}, "a client id and a time"),
        ({"quiet": "../x 24h"}, "quiet"),
        ({"quiet": "FL-LAB 0h"}, "a client id and a time"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_alerts(Path("client.toml"), AlertSettings(**settings))
    assert says in str(caught.value)
    assert "[alerts]" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_quiet_is_read() -> None:
    assert AlertSettings(quiet="FL-LAB 24h, PA-LAB 7d").quiet_s == {
        "FL-LAB": 86_400.0,
        "PA-LAB": 604_800.0,
    }


# -- what a client looks at ------------------------------------------------------------------------


async def test_what_a_client_has_to_look_at(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = load_home(hq.home("FL-LAB"))
    (home.path / "ca.crt").touch()  # it joins now: this home is a copy of an older one
    home.config = attrs.evolve(
        home.config, alerts=AlertSettings(command="true", quiet="CA-RC 1h", stuck_minutes=1)
    )
    from cipherbox.client import watch
    from cipherbox.client.client import open_client

    async with open_client(home, renew=False) as lab:
        assert await conditions(lab) == []
        monkeypatch.setattr(watch, "free_bytes", lambda _: 1000)
        assert [a.name for a in await conditions(lab)] == ["disk"]
        monkeypatch.setattr(watch, "free_bytes", lambda _: 10**12)
        real = watch.clock.now_s
        monkeypatch.setattr(watch.clock, "now_s", lambda: real() + 7200)
        found = await conditions(lab)
        assert [(a.name, a.subject) for a in found] == [("quiet", "CA-RC")]
        assert "nothing from CA-RC for 2 hours" in found[0].text
        monkeypatch.setattr(watch.clock, "now_s", real)
        home.config = attrs.evolve(
            home.config, alerts=attrs.evolve(home.config.alerts, certificate_days=10_000)
        )
        assert [a.name for a in await conditions(lab)] == ["certificate"]


async def test_a_message_that_waits_and_one_that_was_refused(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client import watch
    from cipherbox.client.client import open_client
    from cipherbox.client.outbox.rows import CONFIRMED, PARKED
    from cipherbox.client.outbox.rows import Refused as RefusedRow
    from tests.client.waiting import until

    home = load_home(hq.home("FL-LAB"))
    home.config = attrs.evolve(home.config, alerts=AlertSettings(command="true", stuck_minutes=1))
    async with open_client(home, renew=False, tries=1, keep_trying=True) as lab:
        await lab.publish("first", to="CA-RC")
        outbox = lab.outbox().outbox
        await until(lambda: bool(outbox.rows([CONFIRMED])))  # what HQ said is written together
        await hq.stop()
        lab.connection.timeout_s = 2.0
        waits = await lab.publish("later", to="CA-RC", wait=False)
        real = watch.clock.now_s
        monkeypatch.setattr(watch.clock, "now_s", lambda: real() + 600)
        (stuck,) = await conditions(lab)
        assert stuck.name == "stuck"
        assert "1 messages wait for HQ, the oldest for 10 minutes" in stuck.text
        post = lab.outbox()
        out = RefusedRow(waits.envelope_id, 0, 1, "no such client", PARKED)
        await post.store(lambda: post.outbox.write(refused=[out]))
        found = await conditions(lab)
        assert [a.name for a in found] == ["refused"]
        assert "no such client" in found[0].text


async def test_a_program_that_runs_for_long_tells(
    hq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client import watch
    from cipherbox.client.client import open_client
    from tests.client.waiting import until

    settings, file = recorder(tmp_path)
    monkeypatch.setattr(watch, "free_bytes", lambda _: 1000)
    home = load_home(hq.home("FL-LAB"))
    home.config = attrs.evolve(home.config, alerts=settings)
    async with open_client(home):
        await until(lambda: bool(told(file)))
    async with open_client(home, renew=False):  # a short command tells nothing
        pass
    assert [(e["alert"], e["who"]) for e in told(file)] == [("disk", "FL-LAB")]


async def test_hq_tells_and_a_restart_repeats_nothing(tmp_path: Path) -> None:
    from tests.client.real_hq import real_hq
    from tests.client.waiting import until

    settings, file = recorder(tmp_path)
    async with real_hq(tmp_path / "hq", limits={"disk_resume_bytes": 1 << 60}) as hq:
        await hq.stop()
        hq.config = attrs.evolve(hq.config, alerts=settings)
        await hq.start()
        # written after the telling: a stop between the two would tell again
        state = hq.directory / "alerts.json"
        await until(lambda: state.exists() and b'"told":true' in state.read_bytes())
        await hq.restart()
        async with hq.admin() as admin:
            assert [row["name"] for row in await admin.list("alerts")] == ["disk"]
    assert [(e["alert"], e["state"], e["who"]) for e in told(file)] == [("disk", "begins", "DC-HQ")]
