"""One message id, one text: at HQ, at the recipient, and with what 0.5.0 left behind."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from typing import Any

import pytest
import trio

from cipherbox.client.inbox.schema import DATABASE
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.layout import split
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.prefix import FIXED
from cipherbox.sealing import seal as sealing
from cipherbox.sealing.body import Message, pack, text_message
from cipherbox.sealing.open import open_plain, parse_envelope
from cipherbox.sealing.primitives import aead, derive
from tests.client.attacker import IDS, crafted, now_ms, refusal, submit
from tests.client.real_hq import RealHq

FIXED_1 = struct.Struct(">4sBBIIQQ16sIIBB32s32sHBBB")  # page envelope, version 1


@pytest.fixture
async def hq(hq: RealHq) -> RealHq:
    await hq.join("SF-RC")
    return hq


def refusals(hq: Any, client_id: str) -> list[tuple[int, bytes]]:
    with sqlite3.connect(hq.home(client_id) / DATABASE) as db:
        return db.execute("SELECT outcome, envelope_id FROM refusals").fetchall()


async def test_generation_0_to_x_and_another_text_to_y_in_generation_1(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as x, hq.client("SF-RC") as y:
        one = {"envelope_id": IDS.next(), "sealed_at": now_ms()}
        plain = pack([text_message("pay 10")])
        first = await crafted(lab, ["CA-RC", "SF-RC"], plain, count=1, **one)
        await submit(lab, first)
        with trio.fail_after(60):
            await Receiver(x).drain()
        other = await crafted(lab, ["SF-RC"], [text_message("pay 1000")], generation=1, **one)
        assert await refusal(lab, other) == "commitment-changed"
        with trio.fail_after(60):
            await Receiver(y).drain()
        assert [line["content"] for name in ("CA-RC", "SF-RC") for line in hq.lines(name)] == [
            "pay 10",
            "pay 10",
        ]
        # An HQ that is in it with the sender hands it out all the same: whoever has the id recorded
        # says so, signed.
        later = Delivery("box.SF-RC", (99, 1, now_ms(), 0, other), None, None)
        receiver = Receiver(y)
        with trio.fail_after(60):
            await receiver.take([later])
        assert (receiver.refused, receiver.duplicates, receiver.received) == (1, 0, 0)
        assert refusals(hq, "SF-RC") == [(Outcome.COMMITMENT_CHANGED, one["envelope_id"])]
        # The same text again, in whatever generation, is a duplicate.
        same = await crafted(lab, ["SF-RC"], plain, count=1, generation=2, **one)
        receiver = Receiver(y)
        with trio.fail_after(60):
            await receiver.take([Delivery("box.SF-RC", (100, 1, now_ms(), 0, same), None, None)])
        assert (receiver.refused, receiver.duplicates) == (0, 1)


async def test_both_texts_in_one_batch(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        one = {"envelope_id": IDS.next(), "sealed_at": now_ms()}
        raws = [
            await crafted(lab, ["CA-RC"], [Message(b"text %d" % n)], generation=n, **one)
            for n in (0, 1)
        ]
        receiver = Receiver(center)
        both = [
            Delivery("box.CA-RC", (n, 1, now_ms(), 0, raw), None, None)
            for n, raw in enumerate(raws)
        ]
        with trio.fail_after(60):
            await receiver.take(both)
        assert (receiver.received, receiver.refused) == (1, 1)


async def test_a_lie_about_the_plaintext_is_refused_and_nothing_else_is_kept_up(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sealing, "commit_to", lambda plain, at: bytes(32))
            await submit(lab, await crafted(lab, ["CA-RC"], [Message(b"a lie")]))
        await lab.publish("the truth", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).drain() == 1
        assert [outcome for outcome, _ in refusals(hq, "CA-RC")] == [Outcome.PLAINTEXT_MISMATCH]
    async with hq.admin() as admin:
        assert [str(row["reason"])[:18] for row in await admin.dead_letters()] == [
            "plaintext-mismatch"
        ]


def as_version_1(raw: bytes, content_key: bytes) -> bytes:
    """As 0.5.0 sealed it, but for the stanzas, which the sender does not need."""
    at = split(raw)
    plain = open_plain(parse_envelope(raw), content_key)
    fields = list(FIXED.unpack_from(raw))
    fields[1], fields[3], fields[4] = 1, at.stanzas_at - 33, at.prefix.body_length - 32
    del fields[15], fields[12]
    head = FIXED_1.pack(*fields) + raw[FIXED.size : at.body_at]
    keys = derive(content_key)
    body = aead(at.prefix.body_cipher, keys.body_key).encrypt(
        keys.nonce, b"\x01" + plain[1:6] + plain[38:], hashlib.sha256(head).digest()
    )
    return head + body + raw[at.signatures_at :]


async def test_an_outbox_of_0_5_0_is_sealed_again_and_hq_takes_no_version_1(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.bundles(["CA-RC"])
    await hq.stop()
    async with hq.client("FL-LAB", keep_trying=True) as lab:
        kept = await lab.publish("from before", to="CA-RC", wait=False)
        row = await lab.sent(kept.message_ids[0])
        key = lab.home.secret_box.unwrap(row.content_key, row.envelope_id, 0)
    with sqlite3.connect(hq.home("FL-LAB") / "outbox.sqlite3") as db:
        (data,) = db.execute("SELECT data FROM envelopes").fetchone()
        old = as_version_1(data, key)
        db.execute("UPDATE envelopes SET data = ?, changed_at = 0", (old,))
    await hq.start()
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1
            assert await lab.wait_for([kept.envelope_id], "opened", 60)
        row = await lab.sent(kept.message_ids[0])
        assert row.generation == 1
        assert len(row.commitment) == 32
        assert await refusal(lab, old) == "envelope-refused"
    assert [line["content"] for line in hq.lines("CA-RC")] == ["from before"]
