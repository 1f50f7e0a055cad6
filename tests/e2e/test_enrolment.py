"""Enrolments that wait: for an admin's word, and for a CA that is carried there and back."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cipherbox.cli.exits import Exit
from cipherbox.harness.stage import free_port

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, serving, shell

Wait = Callable[[Callable[[], bool]], None]


@contextmanager
def joining(home: Path, token: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [*PROGRAM, "--home", str(home), "join"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(token.encode())
            process.stdin.close()
            process.stdin = None
            yield process
        finally:
            process.kill()


def pending(admin: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(
        shell("clients", "--pending", "--json", home=admin).out
    )
    return [row for row in rows if row.get("number")]


def test_an_admin_compares_the_number_and_approves(hq: Hq, tmp_path: Path, patient: Wait) -> None:
    shown = shell("enroll", "FL-LAB", "--approve", home=hq.admin)
    assert f"cipherbox --home {hq.admin} approve FL-LAB" in shown.err
    with joining(tmp_path / "lab", shown.out) as process:
        patient(lambda: bool(pending(hq.admin)))
        (row,) = pending(hq.admin)
        assert row["name"] == "FL-LAB"
        assert shell("approve", "FL-LAB", home=hq.admin).code == 0
        out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert f"Number of this enrolment: {row['number']}" in out.decode()
    assert "Waiting until the admin approves it" in err.decode()
    assert pending(hq.admin) == []


def test_an_admin_refuses(hq: Hq, tmp_path: Path, patient: Wait) -> None:
    token = shell("enroll", "FL-LAB", "--approve", home=hq.admin).out
    with joining(tmp_path / "lab", token) as process:
        patient(lambda: bool(pending(hq.admin)))
        assert shell("approve", "FL-LAB", "--refuse", home=hq.admin).code == 0
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == Exit.CREDENTIALS
    assert "cipherbox enroll" in err.decode()
    assert not (tmp_path / "lab" / "client.toml").exists()


def test_the_ca_is_carried_there_and_back(tmp_path: Path, patient: Wait) -> None:
    directory, admin, stick = tmp_path / "hq", tmp_path / "admin", tmp_path / "stick"
    address = f"127.0.0.1:{free_port()}"
    shown = shell(
        "init", str(directory), "--address", address, "--offline-ca", str(stick), home=admin
    )
    assert shown.code == 0, shown.err
    assert "Carry this directory off this machine now" in shown.err
    assert not list((directory / "ca").glob("*.key"))
    vault = stick.rename(tmp_path / "vault")  # carried away
    requests, signed = tmp_path / "requests.json", tmp_path / "signed.json"
    with serving(directory):
        token = shell("enroll", "FL-LAB", home=admin).out
        with joining(tmp_path / "lab", token) as process:
            patient(lambda: bool(pending(admin)))
            shown = shell("ca", "export", str(requests), home=admin)
            assert shown.code == 0, shown.err
            assert "cipherbox ca sign requests.json signed.json" in shown.err
            number = pending(admin)[0]["number"]
            nobody = tmp_path / "nobody"
            shown = shell(
                "ca",
                "sign",
                str(requests),
                str(signed),
                "--ca",
                str(vault),
                home=nobody,
                stdin="y\n",
            )
            assert shown.code == 0, shown.err
            assert f"FL-LAB: number {number}" in shown.out
            assert "cipherbox ca import signed.json" in shown.err
            shown = shell("ca", "import", str(signed), home=admin)
            assert shown.code == 0, shown.err
            out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
        assert f"Number of this enrolment: {number}" in out.decode()
        assert shell("status", home=tmp_path / "lab").code == 0
        shown = shell("ca", "import", str(requests), home=admin)
        assert shown.code == Exit.REFUSED
