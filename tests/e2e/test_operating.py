"""An admin steers a running HQ from another home: top, clients, reload, drain; with what goes
wrong.
"""

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cipherbox.harness.stage import free_port
from tests import postgres

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, make_hq, serving, shell
from .terminal import on_terminal

Patient = Callable[[Callable[[], bool]], None]


def edit(directory: Path, old: str, new: str) -> None:
    file = directory / "cipherbox.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def said(hq: Hq) -> str:
    return (hq.directory.parent / "serve.log").read_text()


@contextmanager
def receiving(home: Path, patient: Patient) -> Iterator[subprocess.Popen[bytes]]:
    """`receive`, subscribed, ended by its pid."""
    output = home.parent / f"{home.name}.out"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*PROGRAM, "--home", str(home), "receive"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
    try:
        patient(lambda: b"Subscribed" in output.read_bytes())
        yield process
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.mark.joined
def test_top_shows_what_is_so(hq: Hq) -> None:
    lab = hq.join("FL-LAB")
    hq.join("CA-RC")
    for _ in range(2):
        assert shell("send", "--to", "CA-RC", "secret content", home=lab).code == 0
    shown = shell("top", "--once", "--json", home=hq.admin)
    assert shown.code == 0, shown.err
    report = json.loads(shown.out)
    assert report["ready"] is True
    assert report["alerts"] == []
    assert report["now"]["waiting"] == 2
    assert report["queues"] == [
        {
            "queue": "box.CA-RC",
            "depth": 2,
            "oldest_s": report["queues"][0]["oldest_s"],
            "consumers": 0,
        }
    ]
    assert {c["name"] for c in report["clients"]} == {"admin"}
    assert report["certificate_days"]["server"] > 300
    plain = shell("top", "--once", home=hq.admin)
    assert plain.code == 0
    for part in ("HQ is ready", "box.CA-RC", "published messages", "commit", "admin"):
        assert part in plain.out
    assert "secret content" not in plain.out + shown.out + said(hq)
    refused = shell("top", "--once", home=lab)
    assert refused.code == 1
    assert "nly an admin may do that" in refused.err


def test_top_without_a_terminal_prints_lines_until_it_is_stopped(hq: Hq, patient: Patient) -> None:
    errors = hq.directory.parent / "top.err"
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [*PROGRAM, "--home", str(hq.admin), "top", "--json", "--interval", "0.3s"],
            stdout=subprocess.PIPE,
            stderr=file,
            env=ENVIRONMENT,
        )
    assert process.stdout is not None
    for _ in range(3):
        assert json.loads(process.stdout.readline())["ready"] is True
    hq.process.terminate()
    hq.process.wait(LIMIT_S)
    patient(lambda: "HQ does not answer" in errors.read_text())
    with serving(hq.directory):
        # the first may be from before
        reports = [json.loads(process.stdout.readline()) for _ in range(10)]
        assert all(rate >= 0 for report in reports for rate in report["rates"].values())
        assert reports[-1]["rates"]["frames in"] > 0
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    process.stdout.close()


def test_top_fits_on_any_terminal(hq: Hq) -> None:
    hq.join("A-CLIENT-WITH-A-LONG-NAME-" + "X" * 30)
    for columns in ("10", "40", "200"):
        shown = shell("top", "--once", home=hq.admin, COLUMNS=columns, LINES="4")
        assert shown.code == 0, shown.err
        assert "HQ is" in shown.out
        assert max(len(line) for line in shown.out.splitlines()) <= int(columns)
    with on_terminal("top", "--interval", "0.2s", home=hq.admin) as terminal:
        for rows, columns in ((4, 12), (50, 200), (1, 1), (24, 80)):
            terminal.resize(rows, columns)
            terminal.expect(r"\x1b\[H")  # shown anew
        terminal.expect("HQ is ready")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


@pytest.mark.joined
def test_a_kicked_client_comes_back_and_roles_change(hq: Hq, patient: Patient) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    with receiving(center, patient) as process:
        rows = json.loads(shell("clients", "list", "--connected", "--json", home=hq.admin).out)
        assert "CA-RC" in [row["name"] for row in rows]
        kicked = shell("clients", "kick", "CA-RC", "--reason", "a word", home=hq.admin)
        assert (kicked.code, kicked.out) == (0, "1 connection of CA-RC cut.\n")
        assert shell("send", "--to", "CA-RC", "after the kick", home=lab).code == 0
        received = center / "data" / "received_messages.jsonl"
        patient(lambda: received.exists() and "after the kick" in received.read_text())
        assert process.poll() is None
    assert "a word" in (center.parent / "CA-RC.out").read_text()
    nobody = shell("clients", "kick", "NY-RC", home=hq.admin)
    assert nobody.code == 1
    assert "No connection of NY-RC" in nobody.err
    assert shell("clients", "kick", "admin", home=lab).code == 1

    assert shell("clients", "roles", home=lab).code == 1
    assert shell("clients", "roles", "FL-LAB", "admin", home=hq.admin).code == 0
    roles = {
        r["client"]: r["role"]
        for r in json.loads(shell("clients", "roles", "--json", home=hq.admin).out)
    }
    assert roles == {"admin": "admin", "FL-LAB": "admin", "CA-RC": "client", "*": "-"}
    assert shell("clients", "roles", "FL-LAB", "client", home=hq.admin).code == 0
    own = shell("clients", "roles", "admin", "client", home=hq.admin)
    assert own.code == 1
    assert "by its enrolment" in own.err
    assert json.loads(shell("clients", "--json", home=hq.admin).out) == json.loads(
        shell("clients", "list", "--json", home=hq.admin).out
    )
    assert (
        shell("clients", "FL-LAB", home=hq.admin).out
        == shell("clients", "show", "FL-LAB", home=hq.admin).out
    )


@pytest.mark.joined
def test_reload_by_frame_and_by_signal_drops_nobody(hq: Hq, patient: Patient) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    with receiving(center, patient):
        number = said(hq).count("Connection closed")
        edit(hq.directory, 'level = "INFO"', 'level = "DEBUG"')
        shown = shell("reload", "--json", home=hq.admin)
        assert shown.code == 0, shown.err
        assert json.loads(shown.out) == [
            {"name": "logging.level", "was": "INFO", "now": "DEBUG", "effect": "now"}
        ]
        assert "nothing changed" in shell("reload", home=hq.admin).out
        good = (hq.directory / "cipherbox.toml").read_text()
        (hq.directory / "cipherbox.toml").write_text(good[: len(good) // 2])
        broken = shell("reload", home=hq.admin)
        assert broken.code == 5
        assert "cipherbox.toml" in broken.err
        assert "Traceback" not in broken.err
        os.kill(hq.process.pid, signal.SIGHUP)
        patient(lambda: said(hq).count("settings unchanged") == 2)
        (hq.directory / "cipherbox.toml").write_text(good)
        edit(hq.directory, 'directory = ""', 'directory = "logs"')
        os.kill(hq.process.pid, signal.SIGHUP)
        patient((hq.directory / "logs" / "server_info.log").exists)
        assert shell("send", "--to", "CA-RC", "hello", home=lab).code == 0
        received = center / "data" / "received_messages.jsonl"
        patient(lambda: received.exists() and "hello" in received.read_text())
        closed = [json.loads(x) for x in said(hq).splitlines() if '"Connection closed"' in x][
            number:
        ]
        assert "CA-RC" not in {line["client"] for line in closed}
    lines = [
        json.loads(x) for x in (hq.directory / "logs" / "server_info.log").read_text().splitlines()
    ]
    published = next(x for x in lines if x["message"].startswith("Published message"))
    acked = next(
        x for x in lines if "acknowledged by client" in x["message"] and x["queue"] == "box.CA-RC"
    )
    for line, client in ((published, "FL-LAB"), (acked, "CA-RC")):
        assert line["client"] == client
        assert line["connection"] > 0
    assert published["message_id"] == acked["message_id"]
    assert shell("reload", home=lab).code == 1


def test_a_drain_ends_hq_in_order_and_senders_go_on_afterwards(
    tmp_path: Path, patient: Patient
) -> None:
    directory, admin = make_hq(tmp_path, joined=True)
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
        assert shell("send", "--to", "CA-RC", "before", home=lab).code == 0
        unasked = shell("drain", home=admin)
        assert unasked.code == 2
        assert "--yes" in unasked.err
        assert shell("drain", "--yes", home=lab).code == 1
        fetched = subprocess.Popen(
            [*PROGRAM, "--home", str(center), "receive", "--exec", "sleep 4"], env=ENVIRONMENT
        )
        patient(lambda: "CA-RC" in shell("clients", "list", "--connected", home=admin).out)
        patient(
            lambda: (
                json.loads(shell("queue", "show", "box.CA-RC", "--json", home=admin).out)[
                    "consumers"
                ]
                == 1
            )
        )
        begun = shell("drain", "--yes", "--no-wait", "--most", "60s", home=admin)
        assert begun.code == 0, begun.err
        kept = shell("send", "--to", "CA-RC", "meanwhile", home=lab)
        assert kept.code == 11, kept.err
        assert process.wait(LIMIT_S) == 0
        fetched.terminate()
        fetched.wait(LIMIT_S)
    with serving(directory):
        sent = shell("send", "--to", "CA-RC", "after", home=lab)
        assert sent.code == 0, sent.err
        assert shell("fetch", home=center).code == 0
        received = (center / "data" / "received_messages.jsonl").read_text()
        assert {json.loads(line)["content"] for line in received.splitlines()} >= {
            "meanwhile",
            "after",
        }
        undo = shell("drain", "--undo", home=admin)
        assert (undo.code, undo.out) == (0, "HQ accepts publishes again.\n")


def test_the_metrics_port_of_a_real_hq(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    port = free_port()
    text = (directory / "cipherbox.toml").read_text()
    head, mark, tail = text.partition("[metrics]\n")
    (directory / "cipherbox.toml").write_text(
        head + mark + tail.replace('listen = ""', f'listen = "127.0.0.1:{port}"')
    )

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with serving(directory) as process:
        assert get("/readyz") == (200, "ready\n")
        assert get("/healthz") == (200, "ok\n")
        status, body = get("/metrics")
        assert status == 200
        for line in (
            "cipherbox_ready 1.0",
            "cipherbox_store_up 1.0",
            "# TYPE cipherbox_waiting_envelopes gauge",
        ):
            assert line in body
        memory = float(body.split("\nprocess_resident_memory_bytes ")[1].split()[0])
        assert 10e6 < memory < 1e9
        process.terminate()
        process.wait(LIMIT_S)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        refused = shell("serve", str(directory), home=admin)
        assert refused.code == 5
        assert f"listen on 127.0.0.1:{port}" in refused.err
        assert (
            f"Find the program (ss -ltnp 'sport = :{port}') and stop it, or set another port"
            in refused.err
        )
        assert "ss -ltnp" in shell("config", "check", str(directory), home=admin).err
    edited = (
        (directory / "cipherbox.toml").read_text().replace(f"127.0.0.1:{port}", f"0.0.0.0:{port}")
    )
    (directory / "cipherbox.toml").write_text(edited)
    refused = shell("serve", str(directory), home=admin)
    assert refused.code == 5
    assert "no loopback address" in refused.err


def test_doctor_finds_what_is_wrong_and_says_what_to_do(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)

    def doctor(*arguments: str, home: Path = admin) -> tuple[int, dict[str, list[dict[str, str]]]]:
        shown = shell("doctor", *arguments, "--json", home=home)
        assert "Traceback" not in shown.err
        found: dict[str, list[dict[str, str]]] = {"good": [], "warning": [], "wrong": []}
        for row in json.loads(shown.out):
            found[row["level"]].append(row)
        assert all(row["todo"] for level in ("warning", "wrong") for row in found[level])
        return shown.code, found

    code, found = doctor(str(directory))
    assert (code, found["wrong"]) == (0, [])
    assert {row["about"] for row in found["good"]} >= {
        "clock",
        "settings",
        "files",
        "keys",
        "certificates",
        "disk",
        "store",
        "ports",
    }
    with serving(directory) as process:
        lab = Hq(directory, admin, process).join("FL-LAB")
        code, found = doctor(str(directory))
        assert (code, found["wrong"], found["warning"]) == (0, [], [])
        assert "network" in {row["about"] for row in found["good"]}
        code, found = doctor(home=lab)
        assert (code, found["wrong"], found["warning"]) == (0, [], [])
        assert any("PING" in row["text"] for row in found["good"])
        (lab / "client.key").chmod(0o644)
        code, found = doctor(home=lab)
        assert code == 5
        assert "chmod 600" in found["wrong"][0]["todo"]
        (lab / "client.key").chmod(0o600)
        assert shell("doctor", home=lab).out.endswith("0 to look at, 0 wrong.\n")
    code, found = doctor(home=lab)  # HQ is gone
    assert code == 5
    assert any("does not answer" in row["text"] for row in found["wrong"])
    code, found = doctor(home=tmp_path / "nothing")
    assert code == 5
    assert any("join" in row["todo"] for row in found["wrong"])

    port = int(
        (directory / "cipherbox.toml").read_text().split('listen = "127.0.0.1:')[1].split('"')[0]
    )
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        code, found = doctor(str(directory))
        assert code == 5
        assert any(
            f":{port}" in row["text"] and "ss -ltnp" in row["todo"] for row in found["wrong"]
        )
    (directory / "tls" / "server.key").write_bytes((directory / "ca" / "issuing.key").read_bytes())
    (directory / "secrets" / "service.key").chmod(0o640)
    edit(directory, 'rotation = "daily"', 'rotation = "daily"\nrotatoin = 1')
    code, found = doctor(str(directory))
    assert code == 5
    assert any("rotatoin" in row["text"] for row in found["wrong"])
    edit(directory, "\nrotatoin = 1", "")
    code, found = doctor(str(directory))
    texts = " ".join(row["text"] for row in found["wrong"])
    assert code == 5
    assert "service.key" in texts
    (directory / "secrets" / "service.key").chmod(0o600)
    code, found = doctor(str(directory))
    assert code == 5
    assert any("is not the key of" in row["text"] for row in found["wrong"])
    database = directory / "cipherbox.sqlite3"
    with database.open("r+b") as file:
        file.seek(20_000)
        file.write(os.urandom(60_000))
    code, found = doctor(str(directory))
    assert code == 5
    assert any(row["about"] == "store" for row in found["wrong"])


@pytest.mark.joined
def test_top_on_a_terminal_is_live_and_ends_with_ctrl_c(hq: Hq) -> None:
    lab = hq.join("FL-LAB")
    hq.join("CA-RC")
    with on_terminal("top", "--interval", "0.3s", home=hq.admin) as terminal:
        terminal.expect("HQ is ready")
        assert shell("send", "--to", "CA-RC", "x", home=lab).code == 0
        terminal.expect("box.CA-RC")
        hq.process.terminate()
        hq.process.wait(LIMIT_S)
        terminal.expect("HQ does not answer")
        with serving(hq.directory):
            terminal.expect("HQ is ready")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == 0


def test_an_hq_whose_terminal_is_closed_ends(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    with on_terminal("serve", str(directory), home=admin) as terminal:
        terminal.expect(" listens on ")
        os.kill(terminal.process.pid, signal.SIGHUP)  # the terminal is still there: a reload
        assert shell("status", home=admin).code == 0
        terminal.close()
        assert terminal.process.wait(LIMIT_S) in (0, -signal.SIGHUP)


def test_doctor_looks_at_postgresql(tmp_path: Path, postgresql: postgres.Server) -> None:
    directory, admin = tmp_path / "hq", tmp_path / "admin"
    name = postgres.schema()
    url = f"{postgres.url(postgresql)}&schema={name}"
    made = shell(
        "init",
        str(directory),
        "--address",
        f"127.0.0.1:{free_port()}",
        "--database",
        url,
        home=admin,
    )
    assert made.code == 0, made.err

    def store() -> list[dict[str, str]]:
        shown = shell("doctor", str(directory), "--json", home=admin)
        assert "Traceback" not in shown.err
        return [row for row in json.loads(shown.out) if row["about"] == "store"]

    (row,) = store()
    assert row["level"] == "good"
    assert "PostgreSQL at 127.0.0.1" in row["text"]
    with serving(directory):
        assert [row["level"] for row in store()] == ["good"]
    file = directory / "cipherbox.toml"
    text = file.read_text()
    file.write_text(text.replace(f":{postgresql.port}", f":{free_port()}"))
    assert [row["level"] for row in store()] == ["wrong"]
    file.write_text(text.replace('schema = "t_', 'schema = "nobody_'))
    assert "holds no HQ" in store()[-1]["text"]
    file.write_text(text)
    for version, todo in ((99, "install the newer cipherbox.pyz"), (1, "cipherbox store upgrade")):
        postgresql.sql(f"COMMENT ON SCHEMA {name} IS 'cipherbox {version}'")
        assert store()[-1]["level"] == "wrong"
        assert todo in store()[-1]["todo"]


@pytest.mark.joined
def test_a_purge_asks_with_the_number_first(hq: Hq) -> None:
    lab = hq.join("FL-LAB")
    hq.join("CA-RC")
    for _ in range(2):
        assert shell("send", "--to", "CA-RC", "x", home=lab).code == 0
    with on_terminal("queue", "purge", "box.CA-RC", home=hq.admin) as terminal:
        terminal.expect("Move the 2 envelopes that wait in 'box.CA-RC' to the dead letters")
        terminal.type("n")
        assert terminal.end() == 130
    assert (
        json.loads(shell("queue", "show", "box.CA-RC", "--json", home=hq.admin).out)["waiting"] == 2
    )
    with on_terminal("queue", "purge", "box.CA-RC", home=hq.admin) as terminal:
        terminal.expect("dead letters")
        terminal.type("y")
        assert terminal.end() == 0
        assert "2 envelopes of 'box.CA-RC' went to the dead letters" in terminal.shown
    unknown = shell("queue", "purge", "nobody", "--yes", home=hq.admin)
    assert unknown.code == 1
