"""Tokens, certificates, renewals and lost keys, as frames."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from cipherbox import pki
from cipherbox.config import load_server_config
from cipherbox.errors import BundleRefused, CipherBoxError, EnrolmentRefused, InvalidRequest
from cipherbox.limits import LIMITS
from cipherbox.sealing.identity import Identity
from cipherbox.server.enrolment import ISSUED, WAITS_FOR_ADMIN, WAITS_FOR_CA
from cipherbox.server.hq import HQ
from cipherbox.server.offline import sign_offline
from cipherbox.server.setup import init_hq
from cipherbox.store.sqlite.store import open_store
from cipherbox.tls import client_context
from cipherbox.wire import frames
from cipherbox.wire.token import Token, decode_token, secret_hash
from tests.server.hq import Raw, Running, codec_name, now_ms, open_vault, running


async def admin(r: Running) -> Raw:
    return await r.dial(await r.person("BOSS", role="admin"))


async def token_for(boss: Raw, client_id: str, *, approve: bool = False, role: str = "client") -> Token:
    answer = await boss.ask(frames.Enrol, client_id, role, approve, 0)
    assert isinstance(answer, frames.Token), answer
    return decode_token(answer.token)


async def request(r: Running, token: Token, key: pki.PrivateKey, *, client_id: str = "") -> frames.Certificate | str:
    """A certificate, or the name of the error; a connection of its own, as a joining machine has."""
    nobody = await r.dial()
    csr = pki.make_csr(key, "WHATEVER")
    answer = await nobody.ask(frames.RequestCertificate, client_id or token.client_id, token.secret, csr)
    if isinstance(answer, frames.Error):
        assert await nobody.next() is None  # refusals end the connection
        return codec_name(answer)
    assert isinstance(answer, frames.Certificate)
    return answer


async def test_a_token_gives_one_certificate_to_one_key_however_often_it_asks(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        token = await token_for(boss, "FL-LAB")
        assert token.root_fingerprint == pki.fingerprint(r.root)
        first = await request(r, token, key)
        assert isinstance(first, frames.Certificate)
        assert (first.state, first.number) == (
            ISSUED, pki.enrol_number(token.root_fingerprint, pki.spki(key.public_key())),
        )  # fmt: skip
        again = await request(r, token, key)
        assert isinstance(again, frames.Certificate)
        assert again.chain == first.chain  # a lost answer costs nothing
        assert await request(r, token, pki.new_key()) == "enrolment-refused"
        leaf = pki.load_der(first.chain[0])
        assert pki.common_name(leaf) == "FL-LAB"  # the id is the token's, whatever the request says
        lab = await r.open(client_context(r.root, [pki.load_der(c) for c in first.chain], key))
        welcome = await lab.hello()
        assert (welcome.client_id, welcome.role) == ("FL-LAB", "client")
        queues = await lab.ask(frames.List, "queues", "", "")
        assert b"box.FL-LAB.bulk" in queues.rows


async def test_tokens_that_do_not_hold(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        token = await token_for(boss, "FL-LAB")
        assert await request(r, attrs.evolve(token, secret=bytes(16)), key) == "token"
        assert await request(r, token, key, client_id="OTHER") == "token"
        store = r.hq.store
        row = store.enrolment(secret_hash(token.secret))
        assert row is not None
        assert token.secret not in attrs.astuple(row)
        store.put_enrolment(attrs.evolve(row, expires_at=now_ms() - 1))
        assert await request(r, token, key) == "token"
        await r.person("PA-LAB")
        assert await boss.refused(frames.Enrol, "pa-lab", "client", False, 0) == "conflict"
        assert await boss.refused(frames.Enrol, "no good", "client", False, 0) == "invalid-request"
        assert await boss.refused(frames.Enrol, "NY-RC", "king", False, 0) == "invalid-request"


async def test_of_two_ids_that_differ_in_case_the_first_to_join_stays_alone(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        upper, lower = await token_for(boss, "FL-LAB"), await token_for(boss, "fl-lab")
        assert isinstance(await request(r, upper, key), frames.Certificate)
        nobody = await r.dial()
        csr = pki.make_csr(pki.new_key(), "fl-lab")
        assert await nobody.refused(frames.RequestCertificate, "fl-lab", lower.secret, csr) == "conflict"
        assert r.hq.store.certificates("fl-lab") == []


async def test_a_held_enrolment_waits_for_the_admins_word(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key, other = await admin(r), pki.new_key(), pki.new_key()
        token, refused = await token_for(boss, "FL-LAB", approve=True), await token_for(boss, "PA-LAB", approve=True)
        assert await boss.refused(frames.Approve, "FL-LAB", True) == "not-found"
        for t, k in ((token, key), (refused, other)):
            held = await request(r, t, k)
            assert isinstance(held, frames.Certificate)
            assert (held.state, held.chain) == (WAITS_FOR_ADMIN, [])
        assert isinstance(await boss.ask(frames.Approve, "FL-LAB", True), frames.Ok)
        assert isinstance(await boss.ask(frames.Approve, "PA-LAB", False), frames.Ok)
        issued = await request(r, token, key)
        assert isinstance(issued, frames.Certificate)
        assert issued.state == ISSUED
        assert await request(r, refused, other) == "enrolment-refused"


async def test_guessing_has_a_rate(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, enrol_attempts_per_minute=2)) as r:
        token = await token_for(await admin(r), "FL-LAB")
        guess = attrs.evolve(token, secret=bytes(16))
        assert [await request(r, guess, pki.new_key()) for _ in range(3)] == ["token", "token", "throttled"]
        assert isinstance(await request(r, token, pki.new_key()), frames.Certificate)  # its tries are its own


async def test_only_admins_enrol_approve_and_revoke(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        for frame in (frames.Enrol(1, "X", "admin", False, 0), frames.Approve(1, "X", True), frames.Revoke(1, "X", "")):
            lab = await r.client("FL-LAB")
            await lab.send(frame)
            assert codec_name(await lab.next()) == "unexpected-frame"


async def test_a_revoked_client_may_be_enrolled_again_and_its_old_certificate_stays_out(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        await r.person("FL-LAB")
        assert isinstance(await boss.ask(frames.Revoke, "FL-LAB", "stolen"), frames.Ok)
        issued = await request(r, await token_for(boss, "FL-LAB"), key)
        assert isinstance(issued, frames.Certificate)
        back = await r.open(client_context(r.root, [pki.load_der(c) for c in issued.chain], key))
        assert (await back.hello()).client_id == "FL-LAB"
        thief = await r.dial(r.people["FL-LAB"], hello=False)
        await thief.stream.send_all(thief.wire.send(frames.Hello(frames.MAGIC, 1, 1, 1 << 20, 30, "")))
        assert codec_name(await thief.next()) == "revoked"


async def test_renewal_keeps_id_and_role_and_takes_the_key_alone(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, key = await r.client("FL-LAB"), pki.new_key()
        answer = await lab.ask(frames.Renew, pki.make_csr(key, "BOSS"))
        assert answer.state == ISSUED
        again = await r.open(client_context(r.root, [pki.load_der(c) for c in answer.chain], key))
        assert (await again.hello()).client_id == "FL-LAB"
        assert await lab.refused(frames.Renew, b"junk") == "invalid-request"


async def test_lost_keys_begin_anew_only_after_another_enrolment(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        me = r.people["FL-LAB"]
        first = me.identity.bundle
        assert first is not None
        assert isinstance(await lab.ask(frames.Register, first.raw), frames.Ok)
        fresh = Identity.generate("FL-LAB")
        anew = fresh.make_bundle(me.key, me.chain, now_ms(), first)
        assert await lab.refused(frames.Register, anew.raw) == "bundle-refused"
        boss = await admin(r)
        token = await token_for(boss, "FL-LAB")
        assert await lab.refused(frames.Register, anew.raw) == "bundle-refused"  # the token was not used yet
        issued = await request(r, token, me.key)
        assert isinstance(issued, frames.Certificate)
        assert isinstance(await lab.ask(frames.Register, anew.raw), frames.Ok)
        older = fresh.make_bundle(me.key, me.chain, now_ms())
        assert await lab.refused(frames.Register, older.raw) == "bundle-refused"
        another = Identity.generate("FL-LAB").make_bundle(me.key, me.chain, now_ms(), anew)
        assert await lab.refused(frames.Register, another.raw) == "bundle-refused"  # once for each enrolment
        answer = await lab.ask(frames.GetBundles, [frames.BundleQuery("FL-LAB", 0)], [])
        assert answer.answers[0].bundles == [first.raw, anew.raw]


# -- the CA is elsewhere ------------------------------------------------------------------------------------------


@asynccontextmanager
async def offline(path: Path) -> AsyncIterator[HQ]:
    """An HQ without its CA, its engine running."""
    init_hq(
        path / "hq", address="127.0.0.1:1", name="DC-HQ", listen="127.0.0.1:0", offline_ca=path / "ca",
        admin_home=path / "admin",
    )  # fmt: skip
    config = load_server_config(path / "hq")
    store = open_store(config.directory)
    try:
        hq = HQ(config, store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hq.engine.run)
            yield hq
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def test_with_an_offline_ca_requests_and_renewals_wait_for_it(tmp_path: Path) -> None:
    async with offline(tmp_path) as hq:
        token = decode_token(await hq.enrolments.token("FL-LAB", "client", approve=False, valid_s=0))
        key, next_key = pki.new_key(), pki.new_key()
        csr, renewal = pki.make_csr(key, "FL-LAB"), pki.make_csr(next_key, "FL-LAB")
        assert (await hq.enrolments.request("FL-LAB", token.secret, csr)).state == WAITS_FOR_CA
        signed = sign_offline(open_vault(tmp_path / "ca"), await hq.carried.export())
        assert await hq.carried.take(signed) == 2  # a certificate and a list
        issued = await hq.enrolments.request("FL-LAB", token.secret, csr)
        assert issued.state == ISSUED
        chain = [pki.load_der(c) for c in issued.chain]
        first = Identity.generate("FL-LAB").make_bundle(key, chain, now_ms())
        assert await hq.directory.register("FL-LAB", first.raw)
        waiting = await hq.enrolments.renew("FL-LAB", renewal)
        assert (waiting.state, waiting.chain) == (WAITS_FOR_CA, ())
        assert await hq.enrolments.renew("FL-LAB", renewal) == waiting
        assert [row["name"] for row in await hq.enrolments.pending()] == ["FL-LAB"]
        signed = sign_offline(open_vault(tmp_path / "ca"), await hq.carried.export())
        assert await hq.carried.take(signed) == 2
        assert await hq.carried.take(signed) == 0
        renewed = await hq.enrolments.renew("FL-LAB", renewal)
        assert renewed.state == ISSUED
        leaf = pki.load_der(renewed.chain[0])
        assert hq.trust.identify(leaf) == "FL-LAB"
        assert pki.spki(leaf.public_key()) == pki.spki(next_key.public_key())  # type: ignore[arg-type]
        with pytest.raises(EnrolmentRefused):
            await hq.enrolments.request("FL-LAB", token.secret, renewal)
        anew = Identity.generate("FL-LAB").make_bundle(key, chain, now_ms(), first)
        with pytest.raises(BundleRefused):  # a renewal is no admin's word that keys were lost
            await hq.directory.register("FL-LAB", anew.raw)
        with pytest.raises(InvalidRequest):
            await hq.carried.take(b"{}")


async def test_what_another_ca_signed_is_not_believed(tmp_path: Path) -> None:
    async with offline(tmp_path) as hq, offline(tmp_path / "other") as other:
        csr = pki.make_csr(pki.new_key(), "FL-LAB")
        for here in (hq, other):
            token = decode_token(await here.enrolments.token("FL-LAB", "client", approve=False, valid_s=0))
            await here.enrolments.request("FL-LAB", token.secret, csr)
        foreign = sign_offline(open_vault(tmp_path / "other" / "ca"), await other.carried.export())
        with pytest.raises(CipherBoxError):
            await hq.carried.take(foreign)
        with pytest.raises(InvalidRequest, match="another CA"):
            sign_offline(open_vault(tmp_path / "other" / "ca"), await hq.carried.export())
        assert [row["state"] for row in await hq.enrolments.pending()] == ["approved"]
