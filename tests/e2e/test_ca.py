"""HQ's certificates over the years, as its administrator sees them: real processes, and OpenSSL
where it is theirs.
"""

import json
import os
import shutil
import signal
import ssl
import subprocess
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cipherbox import pki
from cipherbox.cli.manual import manual_pages
from cipherbox.config.settings import load_client_config, secret_key
from cipherbox.harness.stage import free_port
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.portable import write_private
from tests import soak

from .conftest import ENVIRONMENT, PROGRAM, Hq, init_hq, line_with, make_hq, serving, shell

OPENSSL = shutil.which("openssl")
Patient = Callable[[Callable[[], bool]], None]


def issuing_of(directory: Path) -> pki.Authority:
    certificate = pki.load_pem((directory / "ca" / "issuing.crt").read_bytes(), "issuing")[0]
    key = secret_key(directory / "secrets" / "service.key")
    return pki.Authority(
        certificate, pki.load_key((directory / "ca" / "issuing.key").read_bytes(), key, "issuing")
    )


def due_in(directory: Path, seconds: float) -> None:
    """HQ's certificate anew, such that two thirds of its life are over then; certificates begin
    five minutes ago.
    """
    key = pki.new_key()
    life = timedelta(minutes=5, seconds=seconds) * 1.5
    short = pki.issue_server(
        issuing_of(directory), key.public_key(), "DC-HQ", life / timedelta(days=1)
    )
    (directory / "tls" / "server.crt").write_bytes(pki.pem(short))
    service_key = secret_key(directory / "secrets" / "service.key")
    write_private(directory / "tls" / "server.key", pki.key_pem(key, service_key))


def shown(directory: Path, home: Path) -> int:
    """The serial number of the certificate HQ shows now."""
    host, _, port = load_client_config(home).address.rpartition(":")
    text = ssl.get_server_certificate((host, int(port)), timeout=60)
    return pki.load_pem(text.encode(), "shown")[0].serial_number


def contents(home: Path) -> list[str]:
    return [
        json.loads(x)["content"]
        for x in (home / "data" / "received_messages.jsonl").read_text().splitlines()
    ]


def test_hq_renews_its_certificate_and_drops_nobody(tmp_path: Path, patient: Patient) -> None:
    directory, admin = make_hq(tmp_path, joined=True)
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    due_in(directory, 15)
    before = pki.load_pem((directory / "tls" / "server.crt").read_bytes(), "before")[
        0
    ].serial_number
    with serving(directory):
        assert shown(directory, admin) == before
        running = subprocess.Popen(
            [*PROGRAM, "--home", str(center), "receive", "--count", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        try:
            line_with(running, "Subscribed to queue")
            assert shell("send", "--to", "CA-RC", "under the old one", home=lab).code == 0
            patient(lambda: shown(directory, admin) != before)
            assert shell("send", "--to", "CA-RC", "under the new one", home=lab).code == 0
            out, err = running.communicate(timeout=300)
        finally:
            running.kill()
            running.wait(300)
        assert running.returncode == 0, err
        assert b"connected to HQ again" not in out + err
        assert contents(center) == ["under the old one", "under the new one"]
        rows = {row["name"]: row for row in json.loads(shell("ca", "--json", home=admin).out)}
        assert rows["server"]["days"] > 390
        assert (rows["root"]["key"], rows["issuing"]["key"], rows["clients"]["count"]) == (
            "here",
            "here",
            3,
        )
        assert not (directory / "tls" / "server.key.next").exists()


def test_a_certificate_that_ended_is_renewed_at_the_start(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    due_in(directory, -240)  # it ended a minute and more ago
    assert "expired on" in shell("config", "check", str(directory), home=admin).err
    with serving(directory):
        assert shell("ca", home=admin).code == 0


def test_the_root_key_leaves_and_renews_the_issuing_ca_when_it_is_back(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path, joined=True)
    stick, password = tmp_path / "stick", tmp_path / "password"
    write_private(password, b"correct horse\n")
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
        assert "pass --yes" in shell("ca", "take-off", str(directory), str(stick), home=admin).err
        assert (directory / "ca" / "root.key").exists()
        write_private(tmp_path / "weak", b"secret")
        words = (
            "--password-file",
            str(tmp_path / "weak"),
            "ca",
            "take-off",
            str(directory),
            str(stick),
            "--yes",
        )
        weak = shell(*words, home=admin)
        assert "too easy to guess" in weak.err
        assert (directory / "ca" / "root.key").exists()
        assert not stick.exists()
        take_off = (
            "--password-file",
            str(password),
            "ca",
            "take-off",
            str(directory),
            str(stick),
            "--yes",
        )
        gone = shell(*take_off, home=admin)
        assert gone.code == 0, gone.err
        assert "its copy" in gone.out
        assert not (directory / "ca" / "root.key").exists()
        assert sorted(p.name for p in stick.iterdir()) == [
            "ca.key",
            "issuing.crt",
            "root.crt",
            "root.key",
        ]
        assert {oct(p.stat().st_mode & 0o777) for p in stick.glob("*.key")} == {"0o600"}
        again = shell(
            "ca", "take-off", str(directory), str(tmp_path / "other"), "--yes", home=admin
        )
        assert (again.code, "taken off before" in again.err) == (5, True)
        assert not (tmp_path / "other").exists()
        assert json.loads(shell("ca", "--json", home=admin).out)[0]["key"] == "taken off"

        renew = ("ca", "renew", str(directory))
        assert "Name its directory" in shell(*renew, home=admin).err
        assert shell(*renew, "--root", str(stick), home=admin).code == 4  # nobody said the password
        write_private(tmp_path / "guess", b"battery staple\n")
        guessed = shell(
            "--password-file", str(tmp_path / "guess"), *renew, "--root", str(stick), home=admin
        )
        assert (guessed.code, f"Wrong password for {stick / 'ca.key'}" in guessed.err) == (
            4,
            True,
        ), guessed.err
        foreign = init_hq(tmp_path / "foreign")[0]
        assert (
            shell("ca", "take-off", str(foreign), str(tmp_path / "wrong"), "--yes", home=admin).code
            == 0
        )
        refused = shell(*renew, "--root", str(tmp_path / "wrong"), home=admin)
        assert (refused.code, "is the key of another CA" in refused.err) == (5, True)
        before = (directory / "ca" / "issuing.crt").read_bytes()
        renewed = shell("--password-file", str(password), *renew, "--root", str(stick), home=admin)
        assert renewed.code == 0, renewed.err
        assert not (directory / "ca" / "root.key").exists()
        assert (directory / "ca" / "issuing.crt").read_bytes() != before
        assert "certificate issuing" in shell("reload", home=admin).out

        # who joined before, who joins now, revocation: all as ever
        new = hq.join("NY-RC")
        assert shell("send", "--to", "CA-RC", "--to", "NY-RC", "after it", home=lab).code == 0
        for home in (center, new):
            received = shell("receive", "--count", "1", "--idle", "20", home=home)
            assert received.code == 0, received.err
            assert contents(home) == ["after it"]
        assert shell("revoke", "NY-RC", "--yes", home=admin).code == 0
        assert "was revoked" in shell("send", "--to", "NY-RC", "too late", home=lab).err
        assert shell("keys", "renew", home=lab).code == 0
    back = shell(
        "--password-file", str(password), "ca", "bring-back", str(directory), str(stick), home=admin
    )
    assert back.code == 0, back.err
    assert (directory / "ca" / "root.key").stat().st_mode & 0o777 == 0o600


def test_a_ca_goes_offline_signs_for_hq_too_and_comes_back(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    vault, requests, signed = (
        tmp_path / "vault",
        tmp_path / "requests.json",
        tmp_path / "signed.json",
    )
    with serving(directory) as process:
        lab = Hq(directory, admin, process).join("FL-LAB")
    due_in(directory, 0)
    moved = shell("ca", "take-off", str(directory), str(vault), "--all", "--yes", home=admin)
    assert moved.code == 0, moved.err
    assert not list((directory / "ca").glob("*.key"))
    assert "offline = true" in (directory / "cipherbox.toml").read_text()
    with serving(directory):
        rows = {row["name"]: row for row in json.loads(shell("ca", "--json", home=admin).out)}
        assert [one["client"] for one in rows["requests"]["waiting"]] == ["HQ"]
        assert (rows["issuing"]["key"], rows["root"]["key"]) == ("offline", "offline")
        assert "waits for the CA" in shell("top", "--once", home=admin).out
        assert shell("ca", "renew", str(vault), home=admin).code == 0
        assert shell("ca", "export", str(requests), home=admin).code == 0
        assert (
            shell(
                "ca", "sign", str(requests), str(signed), "--ca", str(vault), "--yes", home=admin
            ).code
            == 0
        )
        before = shown(directory, admin)
        taken = shell("ca", "import", str(signed), home=admin)
        assert taken.code == 0, taken.err
        assert "HQ imported 3" in taken.out  # the issuing CA, HQ's certificate, the list
        assert shown(directory, admin) != before
        rows = {row["name"]: row for row in json.loads(shell("ca", "--json", home=admin).out)}
        assert rows["requests"]["count"] == 0
        assert rows["revocations"]["days"] > 30
        assert shell("ca", "import", str(signed), home=admin).out.startswith(
            "HQ already had all of it"
        )
        back = shell("ca", "bring-back", str(directory), str(vault), "--all", home=admin)
        assert back.code == 0, back.err
        assert "the issuing CA's key" in shell("reload", home=admin).out
        assert shell("keys", "renew", home=lab).code == 0


def test_an_ended_certificate_of_an_offline_ca_is_renewed_beside_hq(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    vault, requests, signed = (
        tmp_path / "vault",
        tmp_path / "requests.json",
        tmp_path / "signed.json",
    )
    due_in(directory, -240)
    assert (
        shell("ca", "take-off", str(directory), str(vault), "--all", "--yes", home=admin).code == 0
    )
    stopped = shell("serve", str(directory), home=admin)
    assert stopped.code == 5
    assert "HQ's certificate ended on" in stopped.err
    assert "this machine's clock says" in stopped.err
    assert shell("ca", "export", str(requests), "--hq", str(directory), home=admin).code == 0
    assert (
        shell(
            "ca", "sign", str(requests), str(signed), "--ca", str(vault), "--yes", home=admin
        ).code
        == 0
    )
    assert shell("ca", "import", str(signed), "--hq", str(directory), home=admin).code == 0
    with serving(directory):
        assert shell("ca", home=admin).code == 0


# -- an organization's CA --------------------------------------------------------------------------


def openssl(*arguments: str, cwd: Path) -> None:
    if OPENSSL is None:
        pytest.skip("needs the command openssl")
    done = subprocess.run(
        [OPENSSL, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def organization(base: Path, key: list[str], between: bool) -> Path:
    """A root by OpenSSL, and for ``between`` a CA below it; `above.pem` is what signs,
    `chain.pem` what is between.
    """
    base.mkdir()
    (base / "ca.ext").write_text(
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
        "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
    for name, signer in (("root", ""), *([("between", "root")] if between else [])):
        openssl("genpkey", *key, "-out", f"{name}.key", cwd=base)
        named = ("-subj", f"/O=Org/CN=Org {name}", "-out", f"{name}.csr")
        openssl("req", "-new", "-key", f"{name}.key", *named, cwd=base)
        by = ["-signkey", "root.key"]
        if signer:
            by = ["-CA", f"{signer}.pem", "-CAkey", f"{signer}.key", "-CAcreateserial"]
        openssl(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *by,
            "-days",
            "3000",
            "-extfile",
            "ca.ext",
            "-out",
            f"{name}.pem",
            cwd=base,
        )
    (base / "chain.pem").write_bytes((base / "between.pem").read_bytes() if between else b"")
    return base


RSA, EC = (
    ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"],
    ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
)


def sign(base: Path, csr: Path, signer: str, section: str, out: str) -> None:
    """As an administrator does who copies the manual's extensions."""
    (base / "ca.ext").write_text(textwrap.dedent(EXTENSIONS))
    openssl(
        "x509",
        "-req",
        "-in",
        str(csr),
        "-CA",
        f"{signer}.pem",
        "-CAkey",
        f"{signer}.key",
        "-CAcreateserial",
        "-days",
        "700",
        "-sha384",
        "-extfile",
        "ca.ext",
        "-extensions",
        section,
        "-out",
        out,
        cwd=base,
    )


EXTENSIONS = manual_pages()["pki"].partition("    [issuing]")[2].partition("\n\n")[0]
EXTENSIONS = f"    [issuing]{EXTENSIONS}\n"


def begin(base: Path, *options: str) -> tuple[Path, Path]:
    directory, admin = base / "hq", base / "admin"
    made = shell(
        "init", str(directory), "--address", f"127.0.0.1:{free_port()}", *options, home=admin
    )
    assert made.code == 0, made.err
    return directory, admin


@pytest.mark.parametrize(
    ("key", "between"),
    [
        pytest.param(EC, False, id="EC root", marks=soak.only),
        pytest.param(RSA, True, id="RSA root, a CA between"),
    ],
)
def test_under_an_organizations_root(
    tmp_path: Path, key: list[str], between: bool, patient: Patient
) -> None:
    org = organization(tmp_path / "org", key, between)
    lists = tmp_path / "lists"
    lists.mkdir()
    directory, admin = begin(tmp_path, "--org-ca", str(org / "root.pem"))
    early = shell("serve", str(directory), home=admin)
    assert (early.code, "has not signed HQ's requests yet" in early.err) == (5, True)
    for look in ("doctor", "config check"):
        looked = shell(*look.split(), str(directory), home=admin)
        assert (looked.code, "requests yet" in looked.out + looked.err) == (5, True)
        # nor does it name what only comes with the answer
        assert "database" not in looked.out + looked.err
    signer = "between" if between else "root"
    sign(org, directory / "ca" / "issuing.csr", signer, "client", "leaf.pem")
    leaf = shell(
        "ca",
        "import",
        str(org / "leaf.pem"),
        str(org / "chain.pem"),
        "--hq",
        str(directory),
        home=admin,
    )
    assert leaf.code != 0
    sign(org, directory / "ca" / "issuing.csr", signer, "issuing", "issuing.pem")
    whole = [str(org / "issuing.pem"), *([str(org / "chain.pem")] if between else [])]
    if between:
        swapped = shell("ca", "import", *whole[::-1], "--hq", str(directory), home=admin)
        assert (swapped.code, "wrong order" in swapped.err) == (5, True)
    (tmp_path / "third").mkdir()
    # the admin of another HQ, whose home is to stay as it is
    _, stranger = begin(tmp_path / "third")
    before = {path: path.read_bytes() for path in stranger.iterdir()}
    wrong = shell("ca", "import", *whole, "--hq", str(directory), home=stranger)
    assert (wrong.code, "cipherbox --home DIRECTORY ca import" in wrong.err) == (5, True), wrong.err
    assert {path: path.read_bytes() for path in stranger.iterdir()} == before
    done = shell("ca", "import", *whole, "--hq", str(directory), home=admin)
    assert done.code == 0, done.err
    text = (directory / "cipherbox.toml").read_text()
    (directory / "cipherbox.toml").write_text(
        text.replace('revocation_lists = ""', f'revocation_lists = "{lists}"')
    )
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
        assert shell("send", "--to", "CA-RC", "under your root", home=lab).code == 0
        assert shell("receive", "--count", "1", "--idle", "20", home=center).code == 0
        assert contents(center) == ["under your root"]
        rows = json.loads(shell("ca", "--json", home=admin).out)
        assert rows[0]["key"] == "the organization's"
        assert [row["name"] for row in rows].count("CA between") == int(between)
        # our request once more: the answer is taken under way
        again = shell("ca", "renew", str(directory), home=admin)
        assert "issuing.csr" in again.out
        sign(org, directory / "ca" / "issuing.csr", signer, "issuing", "issuing2.pem")
        taken = shell("ca", "import", str(org / "issuing2.pem"), *whole[1:], home=admin)
        assert (taken.code, "HQ imported 1" in taken.out) == (0, True), taken.err
        assert shell("send", "--to", "CA-RC", "still", home=lab).code == 0
        # the organization revokes our CA
        (org / "index.txt").write_text("")
        (org / "crlnumber").write_text("01\n")
        (org / "ca.cnf").write_text(
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\n"
            "default_md=sha384\ndefault_crl_days=7\n"
        )
        by = ("-config", "ca.cnf", "-cert", f"{signer}.pem", "-keyfile", f"{signer}.key")
        openssl("ca", *by, "-gencrl", "-out", "new.crl", cwd=org)
        shutil.copy(org / "new.crl", lists / "org.crl")
        assert shell("reload", home=admin).code == 0
        names = [row["name"] for row in json.loads(shell("ca", "--json", home=admin).out)]
        assert "list" in names
        (lists / "org.crl").write_bytes((org / "new.crl").read_bytes()[:200])
        assert "no whole revocation list" in shell("reload", home=admin).err
        openssl("ca", *by, "-revoke", "issuing2.pem", cwd=org)
        openssl("ca", *by, "-gencrl", "-out", "new.crl", cwd=org)
        os.replace(org / "new.crl", lists / "org.crl")
        patient(lambda: "organization revoked" in shell("ca", home=admin).err)
        sign(org, directory / "ca" / "issuing.csr", signer, "issuing", "issuing3.pem")
        again = shell(
            "ca",
            "import",
            str(org / "issuing3.pem"),
            *whole[1:],
            "--hq",
            str(directory),
            home=admin,
        )
        assert (again.code, "SIGHUP" in again.err) == (0, True), again.err
        process.send_signal(signal.SIGHUP)
        patient(lambda: shell("ca", home=admin).code == 0)
        assert shell("send", "--to", "CA-RC", "with a new one", home=lab).code == 0


def test_certified_wholly_by_an_organization(tmp_path: Path, patient: Patient) -> None:
    org = organization(tmp_path / "org", RSA, True)
    (org / "both.pem").write_bytes(
        (org / "between.pem").read_bytes() + (org / "root.pem").read_bytes()
    )
    (org / "index.txt").write_text("")
    (org / "crlnumber").write_text("01\n")
    (org / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\n"
        "default_md=sha384\ndefault_crl_days=7\n"
    )
    by = ("-config", "ca.cnf", "-cert", "between.pem", "-keyfile", "between.key")
    openssl("ca", *by, "-gencrl", "-out", "issuing.crl", cwd=org)
    directory, admin = begin(tmp_path, "--org-issues", str(org / "both.pem"))
    sign(org, directory / "ca" / "hq.csr", "between", "hq", "hq.pem")
    sign(org, directory / "ca" / "admin.csr", "between", "client", "admin.pem")
    missing = shell("ca", "import", str(org / "hq.pem"), "--hq", str(directory), home=admin)
    assert (missing.code, "ca/admin.csr" in missing.err) == (5, True)
    files = [str(org / name) for name in ("hq.pem", "admin.pem", "issuing.crl")]
    done = shell("ca", "import", *files, "--hq", str(directory), home=admin)
    assert done.code == 0, done.err
    lists = tmp_path / "issuing.crl"
    shutil.copy(org / "issuing.crl", lists)
    text = (directory / "cipherbox.toml").read_text()
    (directory / "cipherbox.toml").write_text(
        text.replace('revocation_lists = ""', f'revocation_lists = "{lists}"')
    )
    with serving(directory):
        homes = {}
        for name in ("FL-LAB", "CA-RC"):
            token = shell("enroll", name, home=admin)
            homes[name] = tmp_path / name
            joining = subprocess.Popen(
                [*PROGRAM, "--home", str(homes[name]), "join"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            try:
                assert joining.stdin is not None
                joining.stdin.write(token.out.encode())
                joining.stdin.close()
                joining.stdin = None
                found: list[Path] = []

                def exported(name: str = name, found: list[Path] = found) -> bool:
                    shell("ca", "export", str(tmp_path / "requests"), "--pem", home=admin)
                    found[:] = (tmp_path / "requests").glob(f"{name}-*.csr")
                    return bool(found)

                patient(exported)
                sign(org, found[0], "between", "client", f"{name}.pem")
                taken = shell("ca", "import", str(org / f"{name}.pem"), home=admin)
                assert taken.code == 0, taken.err
                _, err = joining.communicate(timeout=300)
            finally:
                joining.kill()
                joining.wait(300)
            assert joining.returncode == 0, err.decode()
        lab, center = homes["FL-LAB"], homes["CA-RC"]
        assert shell("send", "--to", "CA-RC", "certified by you", home=lab).code == 0
        running = subprocess.Popen(
            [*PROGRAM, "--home", str(center), "receive"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        try:
            line_with(running, "Subscribed to queue")
            patient(lambda: (center / "data" / "received_messages.jsonl").exists())
            openssl("ca", *by, "-revoke", "CA-RC.pem", cwd=org)
            openssl("ca", *by, "-gencrl", "-out", "issuing.crl", cwd=org)
            os.replace(org / "issuing.crl", lists)
            _, err = running.communicate(timeout=300)  # nobody told HQ, and it cuts the connection
        finally:
            running.kill()
            running.wait(300)
        assert running.returncode == 4, err.decode()
        assert "revoked" in err.decode()
        assert "CA-RC was revoked" in shell("send", "--to", "CA-RC", "too late", home=lab).err


def test_a_list_of_a_stranger_is_refused_at_the_start(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    stranger = pki.new_issuing("X", pki.new_root("X"))
    (tmp_path / "x.crl").write_bytes(make_crl(stranger, [], 1))
    text = (directory / "cipherbox.toml").read_text()
    setting = f'revocation_lists = "{tmp_path / "x.crl"}"'
    (directory / "cipherbox.toml").write_text(text.replace('revocation_lists = ""', setting))
    refused = shell("serve", str(directory), home=admin)
    assert (refused.code, "no CA of this HQ signed" in refused.err) == (5, True)
