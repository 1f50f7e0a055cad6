"""The life of keys as its user sees it: rotate, renew, compare, revoke, seal again."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cipherbox import pki
from cipherbox.client.home import load_home
from cipherbox.config.settings import secret_key

from .conftest import ENVIRONMENT, PROGRAM, Hq, line_with, shell


def contents(home: Path) -> list[str]:
    lines = (home / "data" / "received_messages.jsonl").read_text().splitlines()
    return [json.loads(line)["content"] for line in lines]


@pytest.mark.joined
def test_keys_rotate_while_a_backlog_waits(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    assert shell("send", "--to", "CA-RC", "to the old keys", home=lab).code == 0
    before = shell("keys", "fingerprint", home=center).out
    rotated = shell("keys", "rotate", "--signatures", "ed25519+mldsa65", home=center)
    assert rotated.code == 0, rotated.err
    assert "Key bundle 2 of CA-RC is published" in rotated.out
    assert "2 old keys open what was sealed to them, for 436 days" in rotated.out
    assert shell("keys", "fingerprint", home=center).out != before
    assert 'signatures = "ed25519+mldsa65"' in (center / "client.toml").read_text()
    kinds = [
        k["kind"] for k in json.loads(shell("keys", "show", "--json", home=center).out)["keys"]
    ]
    assert kinds == ["hpke-mlkem768-x25519", "hpke-x25519", "ed25519", "mldsa65"]
    assert shell("send", "--to", "CA-RC", "to the new keys", home=lab).code == 0
    pinned = json.loads(shell("keys", "show", "CA-RC", "--json", home=lab).out)
    assert (pinned["bundle"], pinned["pinned_by"]) == (2, "succession")
    assert pinned["log_entry"] > 0
    received = shell("receive", "--count", "2", "--idle", "20", home=center)
    assert received.code == 0, received.err
    assert contents(center) == ["to the old keys", "to the new keys"]
    shown = shell("audit", "show", "--last", "1000", home=hq.admin).out
    assert "CA-RC  has key bundle 1," in shown
    assert "CA-RC  has key bundle 2," in shown
    assert shell("audit", "verify", home=hq.admin).code == 0


@pytest.mark.joined
def test_a_certificate_is_renewed_by_hand(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    before = (center / "client.crt").read_bytes(), (center / "client.key").read_bytes()
    for _ in range(2):
        renewed = shell("keys", "renew", home=center)
        assert renewed.code == 0, renewed.err
        assert "The certificate is renewed; it ends on " in renewed.out
    assert (center / "client.crt").read_bytes() != before[0]
    assert (center / "client.key").read_bytes() != before[1]
    assert shell("keys", "renew", home=hq.admin).code == 0
    assert shell("send", "--to", "CA-RC", "still there", home=lab).code == 0
    assert shell("receive", "--count", "1", "--idle", "20", home=center).code == 0
    refused = shell("keys", "rotate", home=hq.admin)
    assert refused.code == 1
    assert "An admin's machine has no keys" in refused.err


def test_a_short_command_says_when_the_certificate_is_due(hq: Hq) -> None:
    lab = hq.join("FL-LAB")
    key = secret_key(hq.directory / "secrets" / "service.key")
    issuing = pki.load_pem((hq.directory / "ca" / "issuing.crt").read_bytes(), "issuing")[0]
    authority = pki.Authority(
        issuing, pki.load_key((hq.directory / "ca" / "issuing.key").read_bytes(), key, "issuing")
    )
    home = load_home(lab)
    plain = shell("keys", "fingerprint", home=lab).err
    assert plain.startswith("This is the number of key bundle 1 of FL-LAB, made on ")
    for minutes, said in ((60, ""), (7, "ends on"), (4, "ended on")):
        short = pki.issue_client(authority, home.key.public_key(), "FL-LAB", minutes / 24 / 60)  # type: ignore[arg-type]
        (lab / "client.crt").write_bytes(pki.pem(short, issuing))
        shown = shell("keys", "fingerprint", home=lab)
        assert shown.code == 0
        assert len(shown.out.split()) == 6
        assert f"The certificate of FL-LAB {said}" in shown.err if said else shown.err == plain
        assert ("keys renew" in shown.err) == (said == "ends on")


@pytest.mark.joined
def test_two_people_compare_and_a_swap_is_explained(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    number = shell("keys", "fingerprint", home=center).out.strip()
    assert re.fullmatch(r"(\d{5} ){5}\d{5}", number)
    agreed = shell("keys", "verify", "CA-RC", home=lab, stdin=f"{number}\n")
    assert agreed.code == 0, agreed.err
    assert (
        f"Yours, bundle 1, to read to CA-RC: {shell('keys', 'fingerprint', home=lab).out.strip()}"
        in agreed.out
    )
    differs = shell("keys", "verify", "CA-RC", "--fingerprint", number[::-1], home=lab)
    assert differs.code == 1
    assert "man-in-the-middle attack" in differs.err
    assert shell("keys", "rotate", home=center).code == 0
    stale = shell("keys", "verify", "CA-RC", "--fingerprint", number, home=lab)
    assert stale.code == 1
    assert "CA-RC reads the number of its key bundle 1; HQ shows bundle 2" in stale.err
    number = shell("keys", "fingerprint", home=center).out
    followed = shell("keys", "verify", "CA-RC", "--fingerprint", number, home=lab)
    assert followed.code == 0
    assert (
        "CA-RC has new keys since then, signed by the ones pinned here: bundle 2, in entry "
        in followed.out
    )
    old = shutil.move(center, hq.directory.parent / "old")
    refused = shell("enroll", "CA-RC", home=hq.admin)
    assert (refused.code, "cipherbox enroll CA-RC --replace" in refused.err) == (1, True)
    assert shell("doctor", home=old).code == 0
    hq.join("CA-RC", replace=True)
    told = shell("doctor", home=old)
    assert told.code != 0
    assert "another home was enrolled as CA-RC" in told.out
    # also those that do not ask HQ
    for words in (("status",), ("keys", "fingerprint"), ("outbox", "list")):
        assert (
            "This home was replaced: another home was enrolled as CA-RC"
            in shell(*words, home=old).err
        )
    stopped = shell("send", "--to", "CA-RC", "secret", home=lab)
    assert stopped.code == 7
    assert "CA-RC lost its keys and joined again, or the key shown to you is false" in stopped.err
    assert "keys verify CLIENT_ID" in stopped.err


@pytest.mark.joined
def test_lost_keys_are_compared_and_all_is_sealed_again(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    for text in ("one", "two"):
        assert shell("send", "--to", "CA-RC", text, home=lab).code == 0
    shutil.rmtree(center)
    hq.join("CA-RC", replace=True)
    stopped = shell("outbox", "reseal", "--to", "CA-RC", home=lab)
    assert stopped.code == 1
    assert "not signed by the keys before" in stopped.err
    compared = shell(
        "keys", "verify", "CA-RC", home=lab, stdin=shell("keys", "fingerprint", home=center).out
    )
    assert compared.code == 0, compared.err
    assert "outbox reseal --to CA-RC" in compared.err + compared.out
    again = shell("outbox", "reseal", "--to", "CA-RC", home=lab)
    assert again.code == 0, again.err
    assert "2 envelope(s) were resealed" in again.out
    assert shell("receive", "--count", "2", "--idle", "20", home=center).code == 0
    assert contents(center) == ["one", "two"]
    assert "Nothing was resealed" in shell("outbox", "reseal", home=lab).out


@pytest.mark.joined
def test_a_revoked_client_is_cut_off_while_it_receives(hq: Hq) -> None:
    lab, center, other = hq.join("FL-LAB"), hq.join("CA-RC"), hq.join("SF-RC")
    assert shell("send", "--to", "CA-RC", "--to", "SF-RC", "for both", home=lab).code == 0
    running = subprocess.Popen(
        [*PROGRAM, "--home", str(center), "receive", "--queue", "box.CA-RC.bulk"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    try:
        line_with(running, "Subscribed to queue")
        revoked = shell("revoke", "CA-RC", "--reason", "stolen", "--yes", home=hq.admin)
        assert revoked.code == 0, revoked.err
        _, err = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait(300)
    assert running.returncode == 4, err.decode()
    assert "stolen" in err.decode()
    told = shell("send", "--to", "CA-RC", "too late", home=lab)
    assert told.code == 1
    assert "The certificate of CA-RC was revoked" in told.err
    shell("outbox", "reseal", home=lab)  # unless the command before had the time
    sent = json.loads(shell("outbox", "list", "--all", "--json", home=lab).out)
    assert [row["recipients"] for row in sent] == [["SF-RC"]]
    assert sent[0]["generation"] >= 1
    assert shell("receive", "--count", "1", "--idle", "20", home=other).code == 0
    assert contents(other) == ["for both"]
