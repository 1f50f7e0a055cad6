"""RSA keys as a user meets them: made here, brought from OpenSSL, sealed to, handed to other
programs.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)

from cipherbox.envelope.rsa import encode_public
from cipherbox.limits import LIMITS
from cipherbox.portable import write_private

from .conftest import Hq, Shown, shell
from .terminal import on_terminal

PASSWORD = "Zeitstempel 17"


def pem(
    file: Path, key: rsa.RSAPrivateKey, form: PrivateFormat, password: str = "", mode: int = 0o600
) -> Path:
    protection = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    file.write_bytes(key.private_bytes(Encoding.PEM, form, protection))
    file.chmod(mode)
    return file


def public_of(home: Path, file: Path) -> rsa.RSAPublicKey:
    exported = shell("keys", "export", "--rsa", str(file), home=home)
    assert exported.code == 0, exported.err
    found = load_pem_public_key(file.read_bytes())
    assert isinstance(found, rsa.RSAPublicKey)
    return found


def kinds(home: Path, *client_id: str) -> list[str]:
    shown = shell("keys", "show", *client_id, "--json", home=home)
    assert shown.code == 0, shown.err
    return [key["kind"] for key in json.loads(shown.out)["keys"]]


def sends(lab: Path, text: str, *options: str) -> Shown:
    done = shell("send", "--to", "CA-RC", *options, text, home=lab)
    assert done.code == 0, done.err
    return done


def fetched(center: Path) -> list[Any]:
    done = shell("fetch", "--json", home=center)
    assert done.code == 0, done.err
    return [json.loads(line)["content"] for line in done.out.splitlines()]


@pytest.mark.joined
def test_from_generate_to_a_received_message(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    fingerprint = shell("keys", "fingerprint", home=center).out
    sends(lab, "before")
    none = shell("send", "--to", "CA-RC", "--wrap", "rsa", "too early", home=lab)
    assert none.code == 7
    assert "CA-RC has published no key for rsa-oaep" in none.err
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(LIMITS.file_from_bytes + 1)
    in_parts = shell("send", "--to", "CA-RC", "--wrap", "rsa", "--file", str(large), home=lab)
    assert in_parts.code == 7
    assert "CA-RC has published no key for rsa-oaep" in in_parts.err
    early = shell("keys", "export", "--rsa", str(tmp_path / "early.pem"), home=center)
    assert early.code == 1
    assert "cipherbox keys generate --rsa" in early.err

    made = shell("keys", "generate", "--rsa", "--bits", "2048", home=center)
    assert made.code == 0, made.err
    assert "is in key bundle 2 of CA-RC, and HQ has it" in made.out
    assert "cipherbox send --wrap rsa --to CA-RC" in made.err
    assert stat.S_IMODE((center / "keys.cbk").stat().st_mode) == 0o600
    assert kinds(center) == ["hpke-mlkem768-x25519", "hpke-x25519", "rsa-oaep", "ed25519"]
    assert shell("keys", "fingerprint", home=center).out != fingerprint  # of the whole bundle

    (tmp_path / "report.txt").write_text("a file")
    sends(lab, "by default")
    for wrap in ("hpke", "hpke-x25519", "rsa"):
        sends(lab, wrap, "--wrap", wrap)
    attached = shell(
        "send", "--to", "CA-RC", "--wrap", "rsa", "--file", str(tmp_path / "report.txt"), home=lab
    )
    assert attached.code == 0, attached.err
    assert kinds(lab, "CA-RC") == kinds(center)
    assert public_of(center, tmp_path / "first.pem").key_size == 2048

    again = shell("keys", "generate", "--rsa", home=center)
    assert "key bundle 3 of CA-RC" in again.out, again.err
    assert public_of(center, tmp_path / "second.pem").key_size == 3072
    sends(lab, "to the second key", "--wrap", "rsa")
    # texts in the order in which they were sent; a file is whole a moment after its message
    found = fetched(center)
    wanted = ["before", "by default", "hpke", "hpke-x25519", "rsa", "to the second key"]
    assert [one for one in found if not isinstance(one, dict)] == wanted
    assert [Path(one["file"]).read_text() for one in found if isinstance(one, dict)] == ["a file"]
    assert json.loads(shell("dead", "list", "--json", home=hq.admin).out) == []


@pytest.mark.parametrize(
    "form", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8], ids=["PKCS1", "PKCS8"]
)
@pytest.mark.joined
def test_a_key_from_openssl_opens_what_is_sealed_to_it(
    hq: Hq, tmp_path: Path, form: PrivateFormat
) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    key = rsa.generate_private_key(65_537, 2048)
    plain = pem(tmp_path / "receiver_private.pem", key, form)
    locked = pem(tmp_path / "locked.pem", key, form, PASSWORD, 0o644)
    secret = tmp_path / "password"
    write_private(secret, b"wrong\n")

    unasked = shell("keys", "import", str(locked), home=center)
    assert unasked.code == 2
    assert "--pem-password-file FILE" in unasked.err
    wrong = shell("keys", "import", "--pem-password-file", str(secret), str(locked), home=center)
    assert wrong.code == 5
    assert "the password is wrong" in wrong.err
    assert "rsa-oaep" not in kinds(center)

    write_private(secret, PASSWORD.encode() + b"\n")
    secret.chmod(0o644)
    open_to_all = shell(
        "keys", "import", "--pem-password-file", str(secret), str(locked), home=center
    )
    assert open_to_all.code == 5
    assert f"chmod 600 {secret}" in open_to_all.err
    secret.chmod(0o600)
    taken = shell("keys", "import", "--pem-password-file", str(secret), str(locked), home=center)
    assert taken.code == 0, taken.err
    assert "key bundle 2 of CA-RC" in taken.out
    assert f"Other users of this machine may read {locked}" in taken.err
    assert f"delete {locked}" in taken.err
    for shown in (unasked, wrong, taken):
        assert PASSWORD not in shown.out + shown.err
        assert "Traceback" not in shown.err
    same = shell("keys", "import", str(plain), home=center)
    assert same.code == 0, same.err
    assert "in key bundle 2 of CA-RC already" in same.out
    assert "Other users" not in same.err
    assert public_of(center, tmp_path / "public.pem") == key.public_key()
    sends(lab, "for a key from OpenSSL", "--wrap", "rsa")
    assert fetched(center) == ["for a key from OpenSSL"]


def test_files_that_are_no_rsa_key_are_refused_in_plain_words(hq: Hq, tmp_path: Path) -> None:
    center = hq.join("CA-RC")
    small = pem(tmp_path / "small.pem", rsa.generate_private_key(65_537, 1024), PrivateFormat.PKCS8)
    other = tmp_path / "ec.pem"
    other.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    public = tmp_path / "public.pem"
    shell("keys", "generate", "--rsa", "--bits", "2048", home=center)
    public_of(center, public)
    before = (center / "keys.cbk").read_bytes()
    for name, data, code, words in (
        ("small.pem", small.read_bytes(), 5, "2048 to 4096 bits, and this one has 1024"),
        ("ec.pem", other.read_bytes(), 5, "not an RSA key"),
        ("public.pem", public.read_bytes(), 5, "Import its private key"),
        ("cut.pem", small.read_bytes()[:300], 5, "no private key that can be read"),
        (
            "garbage.pem",
            b"-----BEGIN PRIVATE KEY-----\n" + os.urandom(500),
            5,
            "no private key that can be read",
        ),
        ("large.pem", b"-----BEGIN PRIVATE KEY-----\n" * 3000, 5, "too large for an RSA key"),
        ("noise", os.urandom(500), 7, "neither a key bundle (keys export) nor a private key"),
        ("empty", b"", 7, "neither a key bundle"),
        (
            "der",
            encode_public(rsa.generate_private_key(65_537, 2048).public_key()),
            7,
            "neither a key bundle",
        ),
    ):
        (tmp_path / name).write_bytes(data)
        refused = shell("keys", "import", str(tmp_path / name), home=center)
        assert refused.code == code, (name, refused.err)
        assert words in refused.err, (name, refused.err)
        assert "Traceback" not in refused.err
    assert (center / "keys.cbk").read_bytes() == before
    for arguments in (
        ["generate"],
        ["generate", "--rsa", "--bits", "1024"],
        ["generate", "--rsa", "--bits", "3000"],
    ):
        assert shell("keys", *arguments, home=center).code == 2
    admin = shell("keys", "generate", "--rsa", home=hq.admin)
    assert admin.code == 1
    assert "machine holds no keys" in admin.err


def test_the_password_is_asked_on_the_terminal_and_not_shown(hq: Hq, tmp_path: Path) -> None:
    center = hq.join("CA-RC")
    key = rsa.generate_private_key(65_537, 2048)
    locked = pem(tmp_path / "locked.pem", key, PrivateFormat.PKCS8, PASSWORD)
    with on_terminal("keys", "import", str(locked), home=center) as terminal:
        terminal.expect(f"Password of {locked}: ")
        terminal.type(PASSWORD)
        assert terminal.end() == 0, terminal.shown
        assert "key bundle 2 of CA-RC" in terminal.shown
        assert PASSWORD not in terminal.shown


@pytest.mark.joined
def test_a_home_under_a_password_takes_a_new_key_too(hq: Hq, tmp_path: Path) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    secret = tmp_path / "password"
    write_private(secret, b"of the home\n")
    with_it = ("--password-file", str(secret))
    assert shell("keys", "password", "--new-password-file", str(secret), home=center).code == 0
    refused = shell("keys", "generate", "--rsa", "--bits", "2048", home=center)
    assert refused.code == 4
    assert "under a password" in refused.err
    made = shell(*with_it, "keys", "generate", "--rsa", "--bits", "2048", home=center)
    assert made.code == 0, made.err
    sends(lab, "for a home under a password", "--wrap", "rsa")
    done = shell(*with_it, "fetch", "--json", home=center)
    assert [json.loads(line)["content"] for line in done.out.splitlines()] == [
        "for a home under a password"
    ]
