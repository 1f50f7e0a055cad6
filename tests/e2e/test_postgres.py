"""HQ at PostgreSQL as its administrator runs it: made, served, followed by a second HQ, proven."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cipherbox.cli.prove.database import another_hq
from cipherbox.harness.stage import free_port
from tests import postgres, soak

from .conftest import ENVIRONMENT, PROGRAM, Shown, first_line, serving, shell

Patient = Callable[[Callable[[], bool]], None]


def made(tmp_path: Path, server: postgres.Server, *addresses: str) -> tuple[Path, Path]:
    directory, admin = tmp_path / "hq", tmp_path / "admin"
    url = f"{postgres.url(server)}&schema={postgres.schema()}"
    shown = shell(
        "init",
        str(directory),
        "--address",
        ",".join(addresses),
        "--listen",
        addresses[0],
        "--database",
        url,
        home=admin,
    )
    assert shown.code == 0, shown.err
    return directory, admin


@pytest.mark.early
def test_a_second_hq_takes_over_and_clients_follow(
    tmp_path: Path, postgresql: postgres.Server, patient: Patient
) -> None:
    """The first one is stopped where it stands, with its sessions open: its lease must run out."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    directory, admin = made(tmp_path, postgresql, *addresses)
    second = tmp_path / "second"
    another_hq(directory, second, addresses[1])
    lab, center = tmp_path / "FL-LAB", tmp_path / "CA-RC"
    with serving(directory) as first, (tmp_path / "second.log").open("wb") as log:
        for home in (lab, center):
            assert (
                shell("join", home=home, stdin=shell("enroll", home.name, home=admin).out).code == 0
            )
        assert shell("send", "--to", "CA-RC", "to the first", home=lab).code == 0
        busy = shell(
            "store", "copy", str(tmp_path / "second"), f"sqlite:{tmp_path / 'copy'}", home=admin
        )
        assert busy.code == 6
        assert "Stop that HQ first" in busy.err
        waiting = subprocess.Popen(
            [*PROGRAM, "serve", str(second)], stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT
        )
        try:
            assert "another HQ has the lease" in first_line(waiting)
            patient(lambda: f"/{waiting.pid} at 127.0.0.1" in shell("status", home=admin).out)
            began = time.monotonic()
            first.send_signal(signal.SIGSTOP)
            assert " listens on " in first_line(waiting)
            took_s = time.monotonic() - began
            sent = shell("send", "--to", "CA-RC", "to the second", "--within", "30s", home=lab)
            assert sent.code == 0, sent.err
            first.send_signal(signal.SIGCONT)
            patient(lambda: first.poll() is not None)
            assert first.returncode == 6  # the store is another HQ's now
            assert took_s < 60  # a lease lasts six
            assert shell("receive", "--count", "2", "--idle", "30", home=center).code == 0
            assert shell("audit", "verify", home=admin).code == 0
        finally:
            waiting.terminate()
            waiting.wait(300)
            assert waiting.stdout is not None
            waiting.stdout.close()
    lines = (center / "data" / "received_messages.jsonl").read_text().splitlines()
    assert [json.loads(line)["content"] for line in lines] == ["to the first", "to the second"]


def test_a_new_admin_without_an_admin(tmp_path: Path, postgresql: postgres.Server) -> None:
    """Only while nobody serves the database, from whichever directory."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    directory, admin = made(tmp_path, postgresql, *addresses)
    second, anew = tmp_path / "second", tmp_path / "anew"
    another_hq(directory, second, addresses[1])
    words = ("enroll", "admin2", "--role", "admin", "--hq", str(directory))
    with serving(second):
        refused = shell(*words, home=admin)
        assert (refused.code, "HQ has the lease" in refused.err) == (6, True), refused.err
    token = shell(*words, home=admin)
    assert token.code == 0, token.err
    with serving(second):
        assert shell("join", home=anew, stdin=token.out).code == 0
        assert shell("revoke", "admin", home=anew).code == 0
        assert (
            "made a token for admin2 as admin, on HQ's own machine"
            in shell("audit", "show", home=anew).out
        )


def test_hq_waits_for_a_database_that_is_not_there_yet(tmp_path: Path, patient: Patient) -> None:
    server = postgres.new_server()
    try:
        server.start()
        address = f"127.0.0.1:{free_port()}"
        directory, admin = made(tmp_path, server, address)
        server.stop()
        with (tmp_path / "log").open("wb") as log:
            hq = subprocess.Popen(
                [*PROGRAM, "serve", str(directory)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=ENVIRONMENT,
            )
        try:
            assert "cannot be reached" in first_line(hq)
            server.start()
            assert " listens on " in first_line(hq)
            server.kill()  # under a client that is about to ask
            server.start()
            patient(lambda: shell("status", home=admin).code == 0)
        finally:
            hq.terminate()
            assert hq.wait(300) == 0
            assert hq.stdout is not None
            hq.stdout.close()
    finally:
        server.remove()


def test_init_says_what_is_wrong(tmp_path: Path, postgresql: postgres.Server) -> None:
    admin = tmp_path / "admin"

    def refused(url: str, says: str) -> None:
        shown = shell("init", str(tmp_path / "hq"), "--database", url, home=admin)
        assert shown.code not in (0, 70)
        assert says in shown.err
        assert "hunter2" not in shown.err + shown.out
        assert not (tmp_path / "hq").exists()

    port = postgresql.port
    refused("mysql://here", "postgresql://")
    refused(f"postgresql://cipherbox:hunter2@127.0.0.1:{port}/postgres", "password does not belong")
    refused(
        f"postgresql://cipherbox@127.0.0.1:{port}/postgres?password=hunter2",
        "password does not belong",
    )
    refused(f"postgresql://cipherbox@127.0.0.1:{port}/postgres?tsl=off", "Did you mean 'tls'")
    refused(f"postgresql://cipherbox@127.0.0.1:{port}/postgres", "TLS")
    refused(f"postgresql://cipherbox@127.0.0.1:{port}/nowhere?tls=off", "no such database")
    refused(f"postgresql://nobody@127.0.0.1:{port}/postgres?tls=off", "does not accept this user")
    refused(f"postgresql://cipherbox@127.0.0.1:{free_port()}/postgres?tls=off", "cannot be reached")
    url = f"{postgres.url(postgresql)}&schema={postgres.schema()}"
    assert shell("init", str(tmp_path / "hq"), "--database", url, home=admin).code == 0
    checked = shell("config", "check", str(tmp_path / "hq"), home=admin)
    assert checked.code == 0, checked.err + checked.out
    config = tmp_path / "hq" / "cipherbox.toml"
    config.write_text(config.read_text().replace(f":{port}", f":{free_port()}"))
    checked = shell("config", "check", str(tmp_path / "hq"), home=admin)
    assert checked.code != 0
    assert "cannot be reached" in checked.err + checked.out
    again = shell("init", str(tmp_path / "other"), "--database", url, home=tmp_path / "admin2")
    assert again.code != 0
    assert "already contains an HQ" in again.err


@soak.only
def test_demo_at_postgresql(tmp_path: Path, postgresql: postgres.Server) -> None:
    shown = shell("demo", "--database", postgres.url(postgresql), "--json", home=tmp_path)
    assert shown.code == 0, shown.err + shown.out
    left = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'cipherbox%'"
    assert postgresql.sql(left) == []


@soak.only
def test_proof_with_postgresql_killed_and_failed_over(tmp_path: Path) -> None:
    faults = ["kill", "database kill", "failover"]
    shown = shell(
        "prove",
        "--database",
        "local",
        "--postgres-bin",
        str(postgres.binaries()),
        "--rounds",
        "5",
        "--seed",
        "3",
        *(word for fault in faults for word in ("--fault", fault)),
        "--json",
        home=tmp_path,
    )
    assert shown.code == 0, shown.err + shown.out
    proof = json.loads(shown.out)
    assert proof["good"]
    assert proof["counts"]["confirmed"] > 0
    assert proof["faults"].keys() >= {"kill", "failover"}


def test_a_password_from_a_file(tmp_path: Path) -> None:
    """The server wants SCRAM; the file is named as seen from where the command was typed."""
    server = postgres.new_server()
    admin, password = tmp_path / "admin", tmp_path / "db.password"
    try:
        server.start()
        server.sql("ALTER ROLE cipherbox PASSWORD 'correct horse'")
        (server.data / "pg_hba.conf").write_text(
            "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.sql("SELECT pg_reload_conf()")
        url = f"{postgres.url(server)}&password_file=db.password"

        def init(name: str) -> Shown:
            password.chmod(0o600)
            return shell(
                "init",
                str(tmp_path / name),
                "--address",
                f"127.0.0.1:{free_port()}",
                "--database",
                url,
                home=admin,
                cwd=tmp_path,
            )

        for wrong in ("", "battery staple\n"):
            password.write_text(wrong)
            shown = init("hq")
            assert shown.code not in (0, 70), shown.out
            assert "does not accept this user" in shown.err
            assert not wrong or wrong.strip() not in shown.err
        password.write_text("correct horse\n")
        shown = init("hq")
        assert shown.code == 0, shown.err
        with serving(tmp_path / "hq"):
            assert shell("status", home=admin).code == 0
        assert "horse" not in (tmp_path / "hq" / "cipherbox.toml").read_text()
        assert "horse" not in (tmp_path / "serve.log").read_text()
    finally:
        server.remove()
