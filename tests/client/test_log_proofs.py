"""No silent key swap: what HQ hands out stands in its signed log, and what does not fit is
explained.
"""

from __future__ import annotations

import time
from typing import Any

import nacl.signing
import pytest
import trio

from cipherbox import pki
from cipherbox.client import home as homes
from cipherbox.client.connection.confirm_window import Confirmed
from cipherbox.client.keys import lifecycle as keylife
from cipherbox.client.keys.pins import LOG_KEY, PERSON, Pins
from cipherbox.client.log.bundle_proofs import entry_of
from cipherbox.config.settings import secret_key
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.bundle import KeyBundle, decode_bundle, fingerprint
from cipherbox.envelope.checkpoint import Checkpoint, origin_of, sign_checkpoint
from cipherbox.errors import BundleDiscontinuous, BundleUnlogged, LogContradiction
from cipherbox.sealing.body import text_message
from cipherbox.sealing.identity import Identity
from cipherbox.server.directory.bundles import Directory
from cipherbox.server.engine import Engine
from cipherbox.wire import frames
from tests.client.attacker import crafted, submit
from tests.client.waiting import until

Answers = tuple[list[frames.BundleAnswer], list[bytes]]


def swapped(hq: Any, name: str, before: KeyBundle) -> KeyBundle:
    """What whoever holds HQ and its CA can make: certified, and not signed by the keys before."""
    service_key = secret_key(hq.config.encryption.service_key_file)
    issuing = pki.load_pem(hq.config.tls.issuing.read_bytes(), "issuing")[0]
    authority = pki.Authority(
        issuing, pki.load_key(hq.config.ca.issuing_key.read_bytes(), service_key, "issuing")
    )
    key = pki.new_key()
    chain = [pki.issue_client(authority, key.public_key(), name), issuing]
    return Identity.generate(name).make_bundle(key, chain, int(time.time() * 1000), before)


def handing_out(monkeypatch: pytest.MonkeyPatch, bundle: KeyBundle, *, in_log: bool = True) -> None:
    """HQ adds this bundle to what it answers about its client."""
    honest = Directory.answers

    async def answers(self: Directory, query: frames.GetBundles, most_bytes: int) -> Answers:
        found, proofs = await honest(self, query, most_bytes)
        if (
            len(query.clients) == 1
            and query.clients[0].client_id == bundle.client_id
            and not query.hashes
        ):
            found[0].bundles.append(bundle.raw)
            proofs.append(await self._proof(bundle) if in_log else b"")
        return found, proofs

    monkeypatch.setattr(Directory, "answers", answers)


async def test_each_bundle_comes_with_the_proof_that_the_log_names_it(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.admin() as admin, hq.client("CA-RC") as center:
        await lab.publish("x", to="CA-RC")
        await center.key_lifecycle.rotate()
        lab.directory.refresh("CA-RC")
        await lab.publish("y", to="CA-RC")
        pin = lab.directory.pins.get("CA-RC")
        key = lab.directory.pins.log_key()
        proof = lab.directory.pins.proof("CA-RC")
        assert key == lab.connection.current.log_key
        found = log.verify_bundle_proof(proof, "CA-RC", 2, pin.bundle.hash, key).record
        page = await admin.read_log(found.index - 1, 1)
    # the log admins verify is the one the lab was shown
    assert page.entries[0].record == found.encode()
    named = [
        log.read_bundle(g.payload)
        for g in log.decode_groups(page.entries[0].body)
        if g.kind == log.BUNDLE
    ]
    assert named == [("CA-RC", 2, pin.bundle.hash)]


async def test_bundles_of_an_earlier_version_are_named_before_they_leave(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> bytes:
        return b""

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "_proof", never)
        await hq.join("SF-RC")
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="SF-RC")
        assert entry_of(lab.directory.pins.proof("SF-RC")) > 0


@pytest.mark.parametrize("fault", ["none", "another bundle's", "another key's"])
async def test_a_bundle_that_hq_does_not_prove_is_not_believed(
    hq: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "none":

        async def proof(*_: Any) -> bytes:
            return b""

        monkeypatch.setattr(Directory, "_proof", proof)
    else:
        other = nacl.signing.SigningKey.generate() if fault == "another key's" else None

        async def note(self: Engine, kind: int, payload: bytes) -> bytes:
            root = log.root_of(
                log.Group(kind, payload if other is not None else payload[:-32] + bytes(32))
            )
            record = log.Record(1, 1, root, 1).encode()
            key = other or self.audit.signing_key  # type: ignore[union-attr]
            origin = origin_of(bytes(key.verify_key), self.incarnation)
            head = sign_checkpoint(Checkpoint(origin, 1, tree.leaf_hash(record), 1), key)
            return log.make_proof(record, [root], 0, (), head)

        monkeypatch.setattr(Engine, "note", note)
        monkeypatch.setattr(Directory, "_holds", lambda *_: False)
        await hq.restart()
    async with hq.client("FL-LAB") as lab:
        with pytest.raises(BundleUnlogged, match=r"ask its admin|tell the admin"):
            await lab.publish("secret", to="CA-RC")
        assert lab.directory.pins.get("CA-RC") is None


async def test_another_log_is_noticed(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
        seen = lab.directory.pins.log_key()
    await hq.stop()
    # restored without it, or another HQ of the same CA
    (hq.config.own_secrets / "log.key").unlink()
    await hq.start()
    with pytest.raises(
        LogContradiction, match=f"{seen.hex()} was seen here before.*delete certs/{LOG_KEY}"
    ):
        async with hq.client("FL-LAB"):
            pass
    (hq.home("FL-LAB") / "certs" / LOG_KEY).unlink()  # the admin said so
    async with hq.client("FL-LAB") as lab:
        await lab.bundles(["CA-RC"])  # and HQ has named its bundles in the new log


async def test_a_swap_by_hq_and_its_ca_stops_the_sender_and_is_explained(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
        pin = lab.directory.pins.get("CA-RC")
        evil = swapped(hq, "CA-RC", pin.bundle)
        handing_out(monkeypatch, evil)
        lab.directory.refresh("CA-RC")
        with pytest.raises(BundleDiscontinuous) as caught:
            await lab.publish("secret", to="CA-RC")
    text = str(caught.value)
    for part in (
        "not signed by the keys before",
        f"bundle 1, never compared, fingerprint {pin.fingerprint}",
        f"fingerprint {fingerprint(evil)}",
        "of its log",
        "joined again, or the key shown to you is false",
    ):
        assert part in text


async def test_its_owner_notices_keys_made_in_its_name(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = homes.load_home(hq.home("CA-RC")).identity.bundle  # type: ignore[union-attr]
    evil = swapped(hq, "CA-RC", own)  # type: ignore[arg-type]
    handing_out(monkeypatch, evil)
    monkeypatch.setattr(keylife, "LONG_RUNNING_S", 0.0)
    said: list[str] = []
    async with hq.client("CA-RC", on_event=lambda e: said.append(str(e))):
        await until(lambda: any("which this home did not make" in line for line in said))
    assert any(fingerprint(evil) in line for line in said)


async def test_a_swap_at_first_contact_shows_when_people_compare(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log cannot say: whose key it is.  The fingerprint that the owner reads is another
    one.
    """
    own = homes.load_home(hq.home("CA-RC")).identity.bundle  # type: ignore[union-attr]
    handing_out(monkeypatch, swapped(hq, "CA-RC", own))  # type: ignore[arg-type]
    async with hq.client("FL-LAB") as lab:
        await lab.bundles(["CA-RC"])
        assert fingerprint(await lab.directory.newest_at_hq("CA-RC")) != fingerprint(own)  # type: ignore[arg-type]


async def test_a_person_pins_with_the_proof(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        bundle = await lab.directory.newest_at_hq("CA-RC")
        proof = lab.log.bundle_proofs.proof(bundle)
    pins = Pins(hq.home("FL-LAB"))
    pins.accept(bundle, PERSON, proof=proof)
    assert entry_of(pins.proof("CA-RC")) > 0
    assert decode_bundle(bundle.raw) == bundle


async def test_replays_and_later_generations_inside_one_commit_are_proven(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        one, two = [await crafted(lab, ["CA-RC"], [text_message(text)]) for text in ("one", "two")]
        high = await crafted(lab, ["CA-RC"], [text_message("high")], generation=2**32 - 1)
        said: list[Confirmed] = []
        before = hq.gate.accepted

        async def send(raw: bytes) -> None:
            said.append(await submit(lab, raw))

        async with trio.open_nursery() as nursery:
            for raw in (one, one, two, one, high, two, high):
                nursery.start_soon(send, raw)
        assert sorted(one.again for one in said) == [False] * 3 + [True] * 4
        # a proof that did not hold would have ended the connection
        assert hq.gate.accepted == before
