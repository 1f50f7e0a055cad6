"""Somebody who has read nothing: each command says what to do next, and following it leads to a
received message.
"""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cipherbox.cli.exits import Exit

from .conftest import ENVIRONMENT, PROGRAM, Hq, first_line, line_with, make_hq, serving, shell


def test_from_nothing_to_a_received_message(tmp_path: Path) -> None:
    hq, admin, lab, center = (tmp_path / name for name in ("hq", "admin", "lab", "center"))
    from cipherbox.harness.stage import free_port

    shown = shell("init", str(hq), "--address", f"127.0.0.1:{free_port()}", home=admin)
    assert shown.code == 0, shown.err
    assert "HQ 'DC-HQ' is ready" in shown.out
    assert (
        f"Next: start HQ, here or under systemd:      python3 -m cipherbox serve {hq}" in shown.err
    )
    assert f"cipherbox --home {admin} enroll CLIENT_ID" in shown.err

    with serving(hq):
        shown = shell("enroll", "CA-RC", home=admin)
        assert shown.code == 0, shown.err
        assert shown.out.startswith("cipherbox-1-")
        assert shown.out.count("\n") == 1
        assert "cipherbox join" in shown.err
        center_token = shown.out

        shown = shell("join", home=center, stdin=center_token)
        assert shown.code == 0, shown.err
        assert "Number of this enrolment: " in shown.out
        assert "CA-RC is enrolled." in shown.out
        assert f"cipherbox --home {center} receive" in shown.err
        assert center_token.strip() not in shown.out + shown.err

        file = tmp_path / "token"
        shown = shell("enroll", "FL-LAB", "--output", str(file), home=admin)
        assert (shown.code, "cipherbox join --token-file token" in shown.err) == (0, True), (
            shown.err
        )
        assert file.stat().st_mode & 0o077 == 0
        shown = shell("join", "--token-file", str(file), home=lab)
        assert shown.code == 0, shown.err
        assert "send --to CA-RC" in shown.err

        shown = shell("send", "--to", "CA-RC", "This is a test hybrid message.", home=lab)
        assert shown.code == 0, shown.err
        (line,) = shown.out.splitlines()
        assert line.startswith("Sent to CA-RC, confirmed by HQ  ")
        message_id = line.split()[-1]
        shown = shell("send", "--to", "CA-RC", "-v", "And another.", home=lab)
        assert "✅ [SENDER] Server ACK received for message " in shown.out
        assert f"Next: see where it is: python3 -m cipherbox --home {lab} status " in shown.err

        shown = shell("status", message_id, home=lab)
        assert shown.code == 0, shown.err
        assert f"Message {message_id} to CA-RC" in shown.out
        assert "confirmed by HQ" in shown.out
        assert "waits at HQ for CA-RC" in shown.out
        assert "no receipt yet from CA-RC" in shown.out

        shown = shell("receive", "--count", "2", "--idle", "30", home=center)
        assert shown.code == 0, shown.err
        assert f"[RECEIVER] Received message {message_id} from FL-LAB" in shown.out
        assert f"✅ [RECEIVER] Server confirmed ACK for message {message_id}" in shown.out
        assert "2 message(s) received: " in shown.out

        line, _ = (center / "data" / "received_messages.jsonl").read_text("utf-8").splitlines()
        received = json.loads(line)
        assert received["message_id"] == message_id
        assert received["sender_id"] == "FL-LAB"
        assert received["content"] == "This is a test hybrid message."
        assert received["sent_timestamp"].endswith("Z")

        shown = shell("status", message_id, "--json", home=lab)
        report = json.loads(shown.out)
        (trace,) = report["traces"]
        assert (trace["state"], trace["client_id"], trace["attempts"]) == (
            "acknowledged",
            "CA-RC",
            1,
        )
        happened = [step["what"] for step in report["timeline"]]
        assert sorted(happened) == ["acknowledged", "confirmed", "delivered", "opened", "sealed"]
        assert report["not_signed"] == []
        shown = shell("status", message_id, home=lab)
        assert "opened by CA-RC (receipt verified)" in shown.out

        proof = tmp_path / "proof.json"
        shown = shell("receipt", "export", message_id, "--output", str(proof), home=lab)
        assert shown.code == 0, shown.err
        shown = shell("receipt", "verify", str(proof), home=lab)
        assert shown.code == 0, shown.err
        assert f"CA-RC opened message {message_id} of FL-LAB." in shown.out
        stranger = shell("receipt", "verify", str(proof), home=tmp_path / "nobody")
        assert stranger.code == 7
        assert "compare the fingerprint" in stranger.err

        shown = shell("fetch", home=center)
        assert shown.code == 0, shown.err
        assert "0 message(s) received" in shown.out


@pytest.mark.joined
def test_files_headers_types_and_standard_input(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    binary, table = tmp_path / "scan.pdf", tmp_path / "results.csv"
    binary.write_bytes(bytes(range(256)) * 2000)
    table.write_text("sample,value\n17,5.2\n", encoding="utf-8", newline="")
    arguments = ["--file", str(binary), "--file", str(table), "--header", "ward=7"]
    shown = shell("send", "--to", "CA-RC", *arguments, "--json", home=lab)
    assert shown.code == 0, shown.err
    ids = json.loads(shown.out)["message_ids"]
    assert len(ids) == 2
    assert shell("send", "--to", "CA-RC", home=lab, stdin="from a pipe\n").code == 0

    shown = shell("fetch", "--json", home=center)
    assert shown.code == 0, shown.err
    lines = {line["message_id"]: line for line in map(json.loads, shown.out.splitlines())}
    assert len(lines) == 3
    beside = lines[ids[0]]["content"]
    assert (center / "data" / beside["file"]).read_bytes() == binary.read_bytes()
    assert beside["content_type"] == "application/pdf"
    headers = lines[ids[0]]["headers"]
    assert (headers["filename"], headers["ward"]) == ("scan.pdf", "7")
    assert Path(lines[ids[1]]["content"]["file"]).read_text() == "sample,value\n17,5.2\n"
    assert (lines.keys() - set(ids)).pop() not in ids
    assert {line["content"] for line in lines.values() if isinstance(line["content"], str)} >= {
        "from a pipe\n"
    }


@pytest.mark.joined
def test_by_route(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    for arguments in (
        ["exchange", "declare", "lab_exchange", "--type", "topic"],
        ["queue", "declare", "ca_rc_queue", "--owner", "CA-RC"],
        ["binding", "declare", "lab_exchange", "ca_rc_queue", "*.report"],
    ):
        shown = shell(*arguments, home=hq.admin)
        assert shown.code == 0, shown.err
        assert "Next: " in shown.err
    assert "ca_rc_queue" in shell("queue", "list", home=hq.admin).out
    assert "*.report" in shell("binding", "list", home=hq.admin).out
    route = ["--exchange", "lab_exchange", "--key", "fl.report"]

    shown = shell("send", *route, "x", home=lab)
    assert shown.code == Exit.REFUSED, "no right yet"
    assert shell("grant", "FL-LAB", "publish", "lab_exchange", home=hq.admin).code == 0
    shown = shell("send", *route, "x", home=lab)
    assert shown.code == Exit.KEYS, "the sender has not permitted CA-RC yet"
    assert "cipherbox route allow EXCHANGE CLIENT_ID" in shown.err
    assert "lab_exchange" in shell("exchange", "list", home=lab).out

    assert shell("route", "allow", "lab_exchange", "CA-RC", home=lab).code == 0
    assert "CA-RC" in shell("route", "list", home=lab).out
    shown = shell("route", "resolve", "lab_exchange", "fl.report", home=lab)
    assert shown.out.split()[-3:] == ["ca_rc_queue", "CA-RC", "yes"]
    assert shell("send", *route, "by route", home=lab).code == 0
    shown = shell("fetch", "--queue", "ca_rc_queue", "--json", home=center)
    assert json.loads(shown.out)["content"] == "by route"

    shown = shell("send", "--exchange", "lab_exchange", "--key", "nobody.reads.this", "x", home=lab)
    assert shown.code == Exit.REFUSED
    assert "cipherbox route resolve" in shown.err


@pytest.mark.joined
def test_keys_are_compared_by_a_person(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    assert "no key is pinned yet" in shell("keys", "list", home=lab).out
    shown = shell("keys", "fingerprint", home=center)
    assert shown.code == 0, shown.err
    spoken = shown.out.strip()
    assert len(spoken.split()) == 6
    assert shell("keys", "pin", "CA-RC", home=lab).out.strip().endswith(spoken)
    assert json.loads(shell("keys", "list", "--json", home=lab).out)[0]["verified_at"] == 0

    wrong = spoken.replace(spoken[0], str((int(spoken[0]) + 1) % 10))
    shown = shell("keys", "verify", "CA-RC", "--fingerprint", wrong, home=lab)
    assert shown.code == Exit.REFUSED
    assert "They differ" in shown.err
    shown = shell("keys", "verify", "CA-RC", home=lab, stdin=f"{spoken.replace(' ', '-')}\n")
    assert shown.code == 0, shown.err
    assert "They agree" in shown.out
    (row,) = json.loads(shell("keys", "list", "--json", home=lab).out)
    assert row["verified_at"] > 0
    assert (row["how"], row["fingerprint"]) == ("person", spoken)
    assert shell("keys", "fingerprint", home=hq.admin).code == Exit.REFUSED


def test_refusals_are_plain(hq: Hq, tmp_path: Path) -> None:
    lab = hq.join("FL-LAB")
    shown = shell("send", "--to", "NOBODY", "x", home=lab)
    assert shown.code == Exit.REFUSED
    assert "cipherbox clients" in shown.err
    shown = shell("enroll", "PA-LAB", home=lab)
    assert shown.code == Exit.REFUSED, shown.err
    assert "Only an admin may do that, and FL-LAB is not one" in shown.err
    shown = shell("exchange", "declare", "x", home=lab)
    assert shown.code == Exit.REFUSED
    assert "cipherbox grant" in shown.err
    assert "FL-LAB" in shell("clients", home=hq.admin).out
    for shown in (shell("status", home=lab), shell("status", home=hq.admin)):
        assert shown.code == 0, shown.err
        assert "is connected to HQ." in shown.out

    token = shell("enroll", "MA-LAB", home=hq.admin).out
    assert shell("join", home=tmp_path / "ma", stdin=token).code == 0
    shown = shell("join", home=tmp_path / "thief", stdin=token)
    assert shown.code == Exit.CREDENTIALS, "a token works once"
    assert "Traceback" not in shown.err


def test_revocation_is_said_plainly(hq: Hq) -> None:
    lab = hq.join("FL-LAB")
    assert shell("revoke", "FL-LAB", "--reason", "laptop lost", home=hq.admin).code == 0
    shown = shell("status", home=lab)
    assert shown.code == Exit.CREDENTIALS
    assert "Traceback" not in shown.err


@pytest.mark.joined
def test_receive_stops_at_ctrl_c_and_writes_on(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    command = [*PROGRAM, "--home", str(center), "receive"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        try:
            assert line_with(process, "[RECEIVER] Subscribed to queue ")
            assert shell("send", "--to", "CA-RC", "pushed", home=lab).code == 0
            lines = [first_line(process)]
            while "Server confirmed ACK" not in lines[-1]:
                assert lines[-1]
                lines.append(first_line(process))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "1 message(s) received" in out.decode()
    assert b"Traceback" not in err


def test_serve_twice_is_refused(hq: Hq) -> None:
    shown = shell("serve", str(hq.directory), home=hq.admin)
    assert shown.code == Exit.STORE
    assert "End it first" in shown.err


def test_hq_is_away(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    config = admin / "client.toml"
    config.write_text(config.read_text().replace("tries = 3", "tries = 1"))
    shown = shell("status", home=admin)
    assert shown.code == Exit.NETWORK
    assert "is HQ running" in shown.err
    with serving(directory) as process:
        pass
    assert process.returncode == 0, "a stop by SIGTERM is no failure"


@pytest.mark.parametrize(
    ("text", "says"), [("[server]\nlisten = 7\n", "listen"), ("[limit]\n", "Did you mean 'limits'")]
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, says: str) -> None:
    directory, admin = make_hq(tmp_path)
    (directory / "cipherbox.toml").write_text(text)
    shown = shell("serve", str(directory), home=admin)
    assert shown.code == Exit.CONFIG
    assert says in shown.err


def test_a_key_of_31_bytes_is_named(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    key = directory / "secrets" / "database.key"
    key.write_bytes(key.read_bytes()[:31])
    shown = shell("serve", str(directory), home=admin)
    assert shown.code == Exit.CONFIG
    assert "exactly 32 bytes, this file has 31" in shown.err
