"""Makes 0.5.0.tar.xz: HQ's data directory and clients' homes as the untouched program of version
0.5.0 leaves them.

Not run by any test.  It was run once, in a checkout of 0.5.0 with its own .venv (the helpers of its
tests are used):

    git worktree add ../v050 1f4b358 && cd ../v050 && make dist/cipherbox.pyz
    PYTHONPATH=. .venv/bin/python .../tests/data/make_0_5_0.py .../tests/data/0.5.0.tar.xz

Every secret in it was made for it and is worth nothing; NY-RC's home is under the password below.

Time.  A CA elsewhere may give certificates any life, so the CA is offline while the clients join,
and this script signs for it: all certificates last nearly as long as the issuing CA does, ten
years.  Then the CA's keys come back to HQ.  HQ renews its list at its start.  What ends earlier is
what the programs keep for 400 days: see `test_carried_over.py`.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import trio
from cryptography import x509

import cipherbox
from cipherbox import clock, pki
from cipherbox.client.client import Client, open_client
from cipherbox.client.enrol import WAITING, WAITS_FOR_CA, join
from cipherbox.client.keys.pins import PERSON
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.settings import load_server_config
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.errors import Queued
from cipherbox.limits import LIMITS
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.sealing.body import Message
from cipherbox.sealing.identity import DecryptKey
from cipherbox.sealing.rsa import generate
from cipherbox.server.ca.authority import bring_back
from cipherbox.server.ca.offline import ISSUING_KEY, SecretBox, read_requests
from tests.client.real_hq import RealHq, real_hq
from tests.server.hq import open_vault

PASSWORD = "a password of sample data 0.5.0"
DAYS = 3640.0
RANDOM = random.Random(50)
LABS, CENTERS = ("FL-LAB", "MA-LAB", "TX-LAB"), ("CA-RC", "NY-RC")
CLIENTS = (*LABS, *CENTERS)


def sign_long(box: SecretBox, document: bytes) -> bytes:
    """As `sign_offline`, with certificates that last as long as their issuer can."""
    requests, data, chain = read_requests(document), orjson.loads(document), box.chain()
    issuing = box.authority(ISSUING_KEY, chain[0])

    def signed(csr: bytes, client_id: str, hq: str) -> x509.Certificate:
        key = pki.key_of_csr(csr)
        return (
            pki.issue_server(issuing, key, hq, DAYS)
            if hq
            else pki.issue_client(issuing, key, client_id, DAYS)
        )

    certificates = [
        {
            "client_id": r.client_id,
            "chain": [
                base64.b64encode(pki.der(c)).decode()
                for c in (signed(r.csr, r.client_id, r.hq), *chain)
            ],
        }
        for r in requests
    ]
    crl = make_crl(issuing, [], int(data["crl_number"]), pki.OFFLINE_CRL_DAYS)
    return orjson.dumps(
        {
            "format": "cipherbox-certificates-1",
            "certificates": certificates,
            "issuing": [base64.b64encode(pki.der(c)).decode() for c in chain],
            "crl": base64.b64encode(crl).decode(),
        }
    )


class Maker:
    """One HQ while it is made; ``expected``: what the test compares with."""

    def __init__(self, hq: RealHq, base: Path) -> None:
        self.hq, self.base = hq, base
        self.box = open_vault(base / "ca")
        self.expected: dict[str, Any] = {
            "waiting": {},
            "outbox": {},
            "received": {},
            "receipts": [],
        }

    def client(self, name: str, **options: Any) -> Any:
        password = PASSWORD if name == "NY-RC" else None
        return open_client(self.hq.home(name), password=password, **options)

    async def sign_waiting(self) -> None:
        async with self.hq.admin() as admin:
            await admin.import_certificates(sign_long(self.box, await admin.export_requests()))

    async def enrol(self) -> None:
        for name in CLIENTS:
            async with self.hq.admin() as admin:
                token = await admin.enrol(name)
            waits = trio.Event()

            def on_number(number: str, waiting: str = "", waits: trio.Event = waits) -> None:
                if waiting == WAITING[WAITS_FOR_CA]:
                    waits.set()

            async def run(
                name: str = name, token: str = token, say: Callable[..., None] = on_number
            ) -> None:
                options: dict[str, Any] = {"password": PASSWORD} if name == "NY-RC" else {}
                if name == "MA-LAB":
                    options["signatures"] = "ed25519+mldsa65"
                await join(self.hq.home(name), token, on_number=say, pause_s=0.05, **options)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await waits.wait()
                await self.sign_waiting()
        async with self.hq.admin() as admin:
            await admin.life.renew()
            await admin.import_certificates(sign_long(self.box, await admin.export_requests()))
            await admin.life.renew()

    async def online(self) -> None:
        """The CA's keys come back to HQ."""
        bring_back(load_server_config(self.hq.directory), self.box, whole=True)
        self.hq.config = load_server_config(self.hq.directory)
        await self.hq.restart()

    async def topology(self) -> None:
        async with self.hq.admin() as admin:
            await admin.declare_exchange("lab_reports", "topic")
            await admin.declare_queue("reports", owner="CA-RC", readers=["NY-RC"])
            await admin.bind("lab_reports", "reports", "blood.#")
            await admin.grant("*", "publish", "lab_reports")
            await admin.grant("CA-RC", "read", "default_queue")

    async def keys(self) -> None:
        async with self.client("CA-RC") as center:
            await center.life.rotate()  # so that there is a succession, and a retired key
        async with self.client("CA-RC") as center:
            await center.add_key(DecryptKey.from_seed(StanzaType.RSA_OAEP, generate(2048)))
        for name in CENTERS:
            async with self.client(name) as center:
                await center.offer_prekeys()
        async with self.client("FL-LAB") as lab:
            (bundle,) = await lab.bundles(["CA-RC"])
            lab.directory.pins.accept(bundle, PERSON, proof=lab.directory.witness.proof(bundle))
            await lab.bundles(["NY-RC"])

    async def send(
        self, lab: Client, where: str, to: str | list[str], content: Any, **options: Any
    ) -> None:
        """``where``: which part of what is expected the message belongs to."""
        message = (
            Message(content=content, content_type="application/octet-stream")
            if where == "bytes"
            else content
        )
        done = await lab.publish(message, to=to, **options)
        for name in [to] if isinstance(to, str) else to:
            text = f"sha256:{hashlib.sha256(content).hexdigest()}" if where == "bytes" else content
            self.expected["waiting" if where == "bytes" else where].setdefault(name, []).append(
                {"id": str(done.message_ids[0]), "sender": lab.client_id, "content": text}
            )

    async def acknowledged(self) -> None:
        """Messages, sessions and a file that were received, with receipts their senders have and
        exported.
        """
        async with self.client("FL-LAB") as lab, self.client("MA-LAB") as other:
            for kind in ("hpke-mlkem768-x25519", "rsa-oaep", "ratchet"):
                await self.send(lab, "received", "CA-RC", f"received, {kind}", stanza=kind)
            await self.send(other, "received", ["CA-RC", "NY-RC"], "received by two")
            file = self.base / "scan.bin"
            file.write_bytes(bytes(9_000_000))
            await send_file(
                lab, file, ["scan.bin"], ["CA-RC"], "application/octet-stream", compress=True
            )
            for name, count in (("CA-RC", 5), ("NY-RC", 1)):
                async with self.client(name) as center:
                    await Receiver(center).run(count=count, idle_s=5)
            for client, count in ((lab, 3), (other, 1)):
                for row in self.expected["received"]["CA-RC"]:
                    if row["sender"] == client.client_id:
                        found = await self.receipts(client, row["id"])
                        for recipient, data in found.items():
                            name = f"{row['id']}-{recipient}.receipt.json"
                            (self.base / "receipts" / name).write_bytes(data)
                            self.expected["receipts"].append(name)
                        count -= 1
                assert count == 0
            # an answer in the session, and the ends of both
            async with self.client("CA-RC") as center:
                await self.send(
                    center, "received", "FL-LAB", "an answer in the session", stanza="ratchet"
                )
            await Receiver(lab).run(count=1, idle_s=5)

    async def receipts(self, client: Client, message: str) -> dict[str, bytes]:
        with trio.fail_after(60):
            while True:
                row = await client.sent(message)
                assert row is not None
                found = await client.export_receipts(message)
                if len(found) == len(row.recipients):
                    return found
                await trio.sleep(0.05)

    async def dead_letter(self) -> None:
        async with self.client("FL-LAB") as lab, self.client("NY-RC") as center:
            done = await lab.publish("a dead letter", to="NY-RC")
            (delivery,) = await center.fetch_unopened()
            await center.nack(delivery, requeue=False, reason="a dead letter of sample data")
            self.expected["dead"] = {"id": str(done.message_ids[0]), "queue": "box.NY-RC"}

    async def waiting(self) -> None:
        async with self.client("FL-LAB") as lab, self.client("MA-LAB") as other:
            for kind in ("hpke-mlkem768-x25519", "hpke-x25519", "rsa-oaep", "ratchet", "ratchet"):
                try:
                    await self.send(lab, "waiting", "CA-RC", f"waits, {kind}", stanza=kind)
                except cipherbox.errors.BundleError:
                    assert kind == "hpke-x25519"  # not every client has one
            await self.send(
                lab, "waiting", ["CA-RC", "NY-RC"], "waits for two", cipher="chacha20-poly1305"
            )
            await self.send(other, "waiting", "NY-RC", "waits, two signatures")
            await self.send(
                other, "waiting", "NY-RC", "waits, first of a session", stanza="ratchet"
            )
            await self.send(lab, "bytes", "CA-RC", RANDOM.randbytes(150_000))
            for client in (lab, other):
                client.allow.allow("lab_reports", ["CA-RC", "NY-RC"])
                done = await client.publish(
                    f"a report of {client.client_id}",
                    exchange="lab_reports",
                    routing_key="blood.17",
                )
                self.expected["waiting"].setdefault("reports", []).append(
                    {
                        "id": str(done.message_ids[0]),
                        "sender": client.client_id,
                        "content": f"a report of {client.client_id}",
                    }
                )

    async def revoked(self) -> None:
        async with self.client("TX-LAB") as lab:
            done = await lab.publish("sent before it was revoked", to="CA-RC")
            self.expected["waiting"]["CA-RC"].append(
                {
                    "id": str(done.message_ids[0]),
                    "sender": "TX-LAB",
                    "content": "sent before it was revoked",
                }
            )
        await trio.sleep(2.5)  # lists count seconds: it was revoked after HQ accepted the message
        async with self.hq.admin() as admin:
            await admin.revoke("TX-LAB", "sample data")

    async def half_a_file(self) -> None:
        """A file of FL-LAB (a copy in its outbox) of which HQ has some parts, and CA-RC took
        them.
        """
        file = self.base / "run.bin"
        file.write_bytes(b"".join(bytes([n]) * LIMITS.part_bytes for n in range(6)))
        async with self.client("FL-LAB") as lab:
            with trio.CancelScope() as scope:

                def stop_in_the_middle(_: Any, done: int) -> None:
                    if done >= 2 * LIMITS.part_bytes:
                        scope.cancel()

                await send_file(
                    lab,
                    file,
                    ["run.bin"],
                    ["CA-RC"],
                    "",
                    compress=True,
                    copy=True,
                    on_progress=stop_in_the_middle,
                )
            assert scope.cancelled_caught
        async with self.client("CA-RC") as center:
            await Receiver(center).run(["box.CA-RC.bulk"], idle_s=0.5)
        assert any((self.hq.home("CA-RC") / "data/incoming/.partial/FL-LAB").iterdir())

    async def outbox(self) -> None:
        """What HQ has without the sender's knowledge, and what HQ has not."""
        async with self.client("FL-LAB", timeout_s=1.0, tries=1) as lab:
            await lab.ping()
            self.hq.gate.back_held = True
            done = await lab.publish("HQ has it, FL-LAB does not know", to="CA-RC", wait=False)
            await trio.sleep(2)
        await self.hq.gate.cut()
        self.hq.gate.back_held = False
        rows = [
            {
                "id": str(done.message_ids[0]),
                "sender": "FL-LAB",
                "content": "HQ has it, FL-LAB does not know",
            }
        ]
        self.expected["waiting"]["CA-RC"] += rows
        for name, to in (("FL-LAB", "CA-RC"), ("MA-LAB", "NY-RC"), ("NY-RC", "CA-RC")):
            async with self.client(name) as client:
                await client.bundles([to])
        await self.hq.stop()
        for name, to, kind in (
            ("FL-LAB", "CA-RC", None),
            ("FL-LAB", "CA-RC", "rsa-oaep"),
            ("FL-LAB", "CA-RC", "ratchet"),
            ("MA-LAB", "NY-RC", None),
            ("NY-RC", "CA-RC", None),
        ):
            async with self.client(name, timeout_s=1.0, tries=1, keep_trying=True) as client:
                text = f"not sent yet, {name}, {kind or 'preferred'}"
                try:
                    done = await client.publish(text, to=to, stanza=kind, wait=False)
                except Queued as error:
                    raise AssertionError("it waits") from error
                self.expected["outbox"].setdefault(to, []).append(
                    {"id": str(done.message_ids[0]), "sender": name, "content": text}
                )


def pack(base: Path, target: Path) -> None:
    """Modes and bytes, no owner; the same order each time."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in [base, *sorted(base.rglob("*"))]:
            name = path.relative_to(base)
            if name.parts[:1] in (("ca",), ("scan.bin",), ("run.bin",)) or path.name in (
                "reserve",
                "lock",
            ):
                continue
            info = archive.gettarinfo(str(path), arcname=str(Path("0.5.0") / name))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            archive.addfile(info, io.BytesIO(path.read_bytes()) if path.is_file() else None)


async def main(target: Path) -> None:
    assert cipherbox.__version__ == "0.5.0"
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "0.5.0"
        base.mkdir(mode=0o700)
        (base / "receipts").mkdir()
        async with real_hq(base, offline_ca=base / "ca") as hq:
            maker = Maker(hq, base)
            await maker.enrol()
            await maker.online()
            await maker.topology()
            await maker.keys()
            await maker.acknowledged()
            await maker.dead_letter()
            await maker.half_a_file()
            await maker.waiting()
            await maker.revoked()
            await maker.outbox()
            await hq.start()  # so that the end is a clean one
        maker.expected["made_at"] = pki.ms(clock.now())
        maker.expected["path"] = str(base)  # homes hold it where they name files outside of them
        (base / "expected.json").write_text(json.dumps(maker.expected, indent=1))
        pack(base, target)
    print(f"{target}: {os.stat(target).st_size} bytes")


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]).absolute())
