"""Prekeys at HQ: from their owners alone, each one-time part once, each asker within its limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from cipherbox import pki
from cipherbox.envelope.prekeys import decode, decode_once
from cipherbox.errors import Replaced
from cipherbox.limits import LIMITS
from cipherbox.net.tls import client_context
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.ratchet.prekeys import Pair, offer, offer_once
from cipherbox.wire import frames
from cipherbox.wire.token import decode_token
from tests.server.hq import codec_name, running
from tests.server.test_serve import two

OWN = os.urandom(32)


def signed(identity: Identity) -> bytes:
    return offer(identity, OWN, 1, Pair.generate(), 1)


def once(identity: Identity, *numbers: int) -> list[bytes]:
    return [offer_once(identity, OWN, number, Pair.generate()) for number in numbers]


async def left(client: Any) -> int:
    answer = await client.ask(frames.OfferPrekeys, False, b"", [])
    return int(answer.count)


async def test_prekeys_are_taken_from_their_owner_alone(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"].identity, r.people["CA-RC"].identity
        # no bundle yet
        assert await rc.refused(frames.OfferPrekeys, False, signed(you), []) == "bundle-refused"
        assert (await rc.ask(frames.Register, you.bundle.raw)).count == 1
        assert (await lab.ask(frames.Register, me.bundle.raw)).count == 1
        mine, other = signed(you), signed(me)
        forged = signed(Identity.generate("CA-RC"))
        for bad in (
            other,
            forged,
            mine[:-1],
            mine + b"x",
            b"junk",
            mine[:40] + bytes([mine[40] ^ 1]) + mine[41:],
        ):
            assert await rc.refused(frames.OfferPrekeys, False, bad, []) == "bundle-refused"
        for bad in (once(me, 1), once(you, 0), [mine], [*once(you, 1), b""]):
            assert await rc.refused(frames.OfferPrekeys, False, mine, bad) == "bundle-refused"
        assert await left(rc) == 0
        (nothing,) = (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers
        # what came with something wrong was not taken either
        assert (nothing.signed, nothing.once) == (b"", b"")
        assert (await rc.ask(frames.OfferPrekeys, False, mine, once(you, 1, 2))).count == 2
        assert await left(lab) == 0


async def test_each_is_handed_out_once_and_few_to_one_asker(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        you = r.people["CA-RC"].identity
        await rc.ask(frames.Register, you.bundle.raw)
        await rc.ask(frames.OfferPrekeys, False, signed(you), once(you, *range(1, 6)))
        answers = [
            (await lab.ask(frames.GetPrekeys, ["CA-RC", "NOBODY"])).answers for _ in range(4)
        ]
        assert [decode(mine.signed).client_id for mine, _ in answers] == ["CA-RC"] * 4
        assert [nobody.signed for _, nobody in answers] == [b""] * 4
        assert [decode_once(mine.once).prekey_id for mine, _ in answers if mine.once] == [1, 2]
        assert await left(rc) == 3
        mine = (await rc.ask(frames.GetPrekeys, ["CA-RC"])).answers[0]
        assert decode_once(mine.once).prekey_id == 3
        assert (await rc.ask(frames.OfferPrekeys, True, signed(you), once(you, 20))).count == 1


async def test_limits_of_counts_and_rates(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, prekey_requests_per_minute=3, prekeys_per_client=4)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab, rc = await two(r)
        you = r.people["CA-RC"].identity
        await rc.ask(frames.Register, you.bundle.raw)
        assert (
            await rc.refused(frames.OfferPrekeys, False, b"", once(you, *range(1, 6)))
            == "invalid-request"
        )
        assert (await rc.ask(frames.OfferPrekeys, False, b"", once(you, 1, 2, 3))).count == 3
        assert await rc.refused(frames.OfferPrekeys, False, b"", once(you, 4, 5)) == "conflict"
        assert await left(rc) == 3
        assert codec_name(await lab.ask(frames.GetPrekeys, ["A", "B", "C", "D"])) == "throttled"
        assert len((await lab.ask(frames.GetPrekeys, ["A", "B", "C"])).answers) == 3
        assert codec_name(await lab.ask(frames.GetPrekeys, ["A"])) == "throttled"
        too_many = [f"C{i}" for i in range(257)]
        assert await rc.refused(frames.GetPrekeys, too_many) == "invalid-request"


async def test_a_revoked_client_has_none(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        you = r.people["CA-RC"].identity
        await rc.ask(frames.Register, you.bundle.raw)
        await rc.ask(frames.OfferPrekeys, False, signed(you), [])
        assert (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers[0].signed
        admin = await r.dial(await r.person("BOSS", role="admin"))
        await admin.ask(frames.Revoke, "CA-RC", "stolen")
        assert (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers[0].signed == b""


async def test_what_other_keys_signed_is_not_handed_out(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        person = r.people["CA-RC"]
        first = person.identity.bundle
        await rc.ask(frames.Register, first.raw)
        await rc.ask(frames.OfferPrekeys, False, signed(person.identity), once(person.identity, 1))
        fresh = Identity.generate("CA-RC")
        fresh.bundle = fresh.make_bundle(
            person.key, person.chain, first.created_at + 1, first, person.identity
        )
        assert (await rc.ask(frames.Register, fresh.bundle.raw)).count == 1
        (found,) = (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers
        assert (found.signed, found.once) == (b"", b"")
        assert (
            await rc.refused(frames.OfferPrekeys, False, signed(person.identity), [])
            == "bundle-refused"
        )
        await rc.ask(frames.OfferPrekeys, True, signed(fresh), once(fresh, 2))
        (found,) = (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers
        assert decode_once(found.once).prekey_id == 2


async def test_those_of_a_home_that_was_replaced_are_gone(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        person = r.people["CA-RC"]
        first = person.identity.bundle
        await rc.ask(frames.Register, first.raw)
        await rc.ask(frames.OfferPrekeys, False, signed(person.identity), once(person.identity, 1))
        token = decode_token(
            await r.hq.enrolments.token(
                "CA-RC", "client", approve=False, valid_s=0, replaces=True, by="BOSS"
            )
        )
        key, fresh = pki.new_key(), Identity.generate("CA-RC")
        issued = await r.hq.enrolments.request("CA-RC", token.secret, pki.make_csr(key, "CA-RC"))
        with pytest.raises(Replaced):  # a request of the old home that HQ gets to only now
            r.hq.trust.require(pki.serial(person.chain[0]))
        chain = [pki.load_der(der) for der in issued.chain]
        fresh.bundle = fresh.make_bundle(key, chain, first.created_at + 1, first)
        back = await r.open(client_context(r.root, chain, key))
        await back.hello()
        assert (await back.ask(frames.Register, fresh.bundle.raw)).count == 1
        (found,) = (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers
        assert (found.signed, found.once) == (b"", b"")
        await back.ask(frames.OfferPrekeys, False, signed(fresh), [])
        (found,) = (await lab.ask(frames.GetPrekeys, ["CA-RC"])).answers
        assert (bool(found.signed), found.once) == (True, b"")  # and no one-time part of before
