"""Tokens, certificates, renewals and lost keys, as frames."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import orjson
import pytest
import trio
from cryptography import x509

from cipherbox import pki
from cipherbox.client.enrol import checked_chain
from cipherbox.config.settings import load_server_config
from cipherbox.envelope import transparency_log as log
from cipherbox.errors import (
    BundleRefused,
    CipherBoxError,
    EnrolmentRefused,
    InvalidRequest,
    NotValidNow,
    Replaced,
    Revoked,
)
from cipherbox.limits import LIMITS
from cipherbox.net.tls import client_context
from cipherbox.sealing.identity import Identity
from cipherbox.server.ca.offline import sign_offline
from cipherbox.server.directory.enrolment import ISSUED, WAITS_FOR_ADMIN, WAITS_FOR_CA
from cipherbox.server.hq import HQ
from cipherbox.server.operations.setup import init_hq
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import frames
from cipherbox.wire.token import Token, decode_token, secret_hash
from tests.server.clocks import confirmed_clock
from tests.server.hq import Raw, Running, codec_name, now_ms, open_vault, running


async def admin(r: Running) -> Raw:
    return await r.dial(await r.person("BOSS", role="admin"))


async def token_for(
    boss: Raw,
    client_id: str,
    *,
    approve: bool = False,
    role: str = "client",
    replaces: bool = False,
) -> Token:
    answer = await boss.ask(frames.Enrol, client_id, role, approve, 0, replaces)
    assert isinstance(answer, frames.Token), answer
    return decode_token(answer.token)


async def request(
    r: Running, token: Token, key: pki.PrivateKey, *, client_id: str = ""
) -> frames.Certificate | str:
    """A certificate, or the name of the error; a connection of its own, as a joining machine
    has.
    """
    nobody = await r.dial()
    csr = pki.make_csr(key, "WHATEVER")
    answer = await nobody.ask(
        frames.RequestCertificate, client_id or token.client_id, token.secret, csr
    )
    if isinstance(answer, frames.Error):
        assert await nobody.next() is None  # refusals end the connection
        return codec_name(answer)
    assert isinstance(answer, frames.Certificate)
    return answer


async def test_a_token_gives_one_certificate_to_one_key_however_often_it_asks(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        token = await token_for(boss, "FL-LAB")
        assert token.root_fingerprint == pki.fingerprint(r.root)
        first = await request(r, token, key)
        assert isinstance(first, frames.Certificate)
        assert (first.state, first.number) == (
            ISSUED,
            pki.enrol_number(token.root_fingerprint, pki.spki(key.public_key())),
        )
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


async def test_a_certificate_that_was_made_by_a_wrong_time_is_made_again(tmp_path: Path) -> None:
    """An admin had confirmed HQ's clock by mistake: no client accepts what begins in 200 days."""
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        with confirmed_clock(r.hq, 200):
            token = await token_for(boss, "FL-LAB")
            early = await request(r, token, key)
            assert isinstance(early, frames.Certificate)
            assert await request(r, token, key) == early  # by that time it has begun
        with pytest.raises(NotValidNow, match="begins only on"):
            checked_chain(early.chain, r.root, key, "FL-LAB")
        right = await request(r, token, key)
        assert isinstance(right, frames.Certificate)
        checked_chain(right.chain, r.root, key, "FL-LAB")
        assert await request(r, token, key) == right
        assert await request(r, token, pki.new_key()) == "enrolment-refused"
        await connected(r, right, key)


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
        assert (
            await nobody.refused(frames.RequestCertificate, "fl-lab", lower.secret, csr)
            == "conflict"
        )
        assert r.hq.store.certificates("fl-lab") == []


async def test_a_held_enrolment_waits_for_the_admins_word(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key, other = await admin(r), pki.new_key(), pki.new_key()
        token, refused = (
            await token_for(boss, "FL-LAB", approve=True),
            await token_for(boss, "PA-LAB", approve=True),
        )
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
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, enrol_attempts_per_minute=2)
    ) as r:
        token = await token_for(await admin(r), "FL-LAB")
        guess = attrs.evolve(token, secret=bytes(16))
        assert [await request(r, guess, pki.new_key()) for _ in range(3)] == [
            "token",
            "token",
            "throttled",
        ]
        # its tries are its own
        assert isinstance(await request(r, token, pki.new_key()), frames.Certificate)


async def test_only_admins_enrol_approve_and_revoke(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        for frame in (
            frames.Enrol(1, "X", "admin", False, 0),
            frames.Approve(1, "X", True),
            frames.Revoke(1, "X", ""),
        ):
            lab = await r.client("FL-LAB")
            await lab.send(frame)
            assert codec_name(await lab.next()) == "unexpected-frame"


async def test_a_revoked_client_may_be_enrolled_again_and_its_old_certificate_stays_out(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        await r.person("FL-LAB")
        assert isinstance(await boss.ask(frames.Revoke, "FL-LAB", "stolen"), frames.Ok)
        issued = await request(r, await token_for(boss, "FL-LAB"), key)
        assert isinstance(issued, frames.Certificate)
        back = await r.open(client_context(r.root, [pki.load_der(c) for c in issued.chain], key))
        assert (await back.hello()).client_id == "FL-LAB"
        thief = await r.dial(r.people["FL-LAB"], hello=False)
        await thief.stream.send_all(
            thief.wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 30, ""))
        )
        assert codec_name(await thief.next()) == "replaced"  # another home has this id now


async def test_renewal_keeps_id_and_role_and_takes_the_key_alone(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, key = await r.client("FL-LAB"), pki.new_key()
        answer = await lab.ask(frames.Renew, pki.make_csr(key, "BOSS"))
        assert answer.state == ISSUED
        again = await r.open(client_context(r.root, [pki.load_der(c) for c in answer.chain], key))
        assert (await again.hello()).client_id == "FL-LAB"
        assert await lab.refused(frames.Renew, b"junk") == "invalid-request"


async def connected(r: Running, issued: frames.Certificate | str, key: pki.PrivateKey) -> Raw:
    """A connection with a certificate that was just issued."""
    assert isinstance(issued, frames.Certificate), issued
    raw = await r.open(client_context(r.root, [pki.load_der(c) for c in issued.chain], key))
    await raw.hello()
    return raw


async def test_lost_keys_begin_anew_only_after_another_enrolment(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        me = r.people["FL-LAB"]
        first = me.identity.bundle
        assert first is not None
        assert isinstance(await lab.ask(frames.Register, first.raw), frames.Ok)
        fresh, key = Identity.generate("FL-LAB"), pki.new_key()
        anew = fresh.make_bundle(me.key, me.chain, now_ms(), first)
        assert await lab.refused(frames.Register, anew.raw) == "bundle-refused"
        boss = await admin(r)
        token = await token_for(boss, "FL-LAB", replaces=True)
        # the token was not used yet
        assert await lab.refused(frames.Register, anew.raw) == "bundle-refused"
        issued = await request(r, token, key)
        assert await lab.next() is not None  # says why: it was replaced
        assert await lab.next() is None
        back = await connected(r, issued, key)
        assert isinstance(issued, frames.Certificate)
        chain = [pki.load_der(c) for c in issued.chain]
        # not under the token's certificate
        assert await back.refused(frames.Register, anew.raw) == "bundle-refused"
        anew = fresh.make_bundle(key, chain, now_ms(), first)
        signed_after = fresh.make_bundle(key, chain, now_ms())
        # not after the newest
        assert await back.refused(frames.Register, signed_after.raw) == "bundle-refused"
        assert isinstance(await back.ask(frames.Register, anew.raw), frames.Ok)
        another = Identity.generate("FL-LAB").make_bundle(key, chain, now_ms(), anew)
        # once for each enrolment
        assert await back.refused(frames.Register, another.raw) == "bundle-refused"
        renewed = await back.ask(frames.Renew, pki.make_csr(next_key := pki.new_key(), "FL-LAB"))
        under = [pki.load_der(c) for c in renewed.chain]
        third = fresh.make_bundle(next_key, under, now_ms(), anew)
        assert isinstance(await back.ask(frames.Register, third.raw), frames.Ok)
        # nor with the one before, once it was renewed
        for its_key, its_chain in ((key, chain), (next_key, under)):
            another = Identity.generate("FL-LAB").make_bundle(its_key, its_chain, now_ms(), third)
            assert await back.refused(frames.Register, another.raw) == "bundle-refused"
        answer = await back.ask(frames.GetBundles, [frames.BundleQuery("FL-LAB", 0)], [])
        assert answer.answers[0].bundles == [first.raw, anew.raw, third.raw]
        said = await acts(r)
        assert ["BOSS", "Enrol", {"target": "FL-LAB", "role": "client", "replaces": True}] in said
        assert ["", "ReplaceClient", {"target": "FL-LAB"}] in said
        assert [
            "",
            "KeysAnew",
            {"target": "FL-LAB", "sequence": 2, "bundle": anew.hash.hex()},
        ] in said


async def acts(r: Running) -> list[object]:
    """What HQ's signed log says was done."""
    rows = await r.hq.engine.in_store(r.hq.store.log, 0, 1000, 1 << 22)
    groups = [g for row in rows for g in log.decode_groups(row.body)]
    return [act for g in groups if g.kind == log.ACTS for act in orjson.loads(g.payload)]


# -- revoked means revoked -------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["open", "waiting", "approved", "issued"])
async def test_a_token_made_before_a_revocation_gives_nothing_after_it(
    tmp_path: Path, state: str
) -> None:
    """The thief of a token waits until the lab is revoked, or until it has come back."""
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        token = await token_for(boss, "FL-LAB", approve=state != "open")
        if state != "open":
            waits = await request(r, token, key)
            assert isinstance(waits, frames.Certificate)
            assert waits.state == WAITS_FOR_ADMIN
        if state in ("approved", "issued"):
            assert isinstance(await boss.ask(frames.Approve, "FL-LAB", True), frames.Ok)
        if state == "issued":
            assert isinstance(await request(r, token, key), frames.Certificate)
        else:
            await r.person("FL-LAB")
        assert isinstance(await boss.ask(frames.Revoke, "FL-LAB", "stolen"), frames.Ok)
        assert await request(r, token, key) == "enrolment-refused"
        if state == "waiting":
            assert await boss.refused(frames.Approve, "FL-LAB", True) == "not-found"
        answer = await boss.ask(frames.GetBundles, [frames.BundleQuery("FL-LAB", 0)], [])
        assert answer.answers[0].state == 2  # revoked, and not known again
        own = pki.new_key()
        back = await connected(r, await request(r, await token_for(boss, "FL-LAB"), own), own)
        assert await request(r, token, key) == "enrolment-refused"
        assert isinstance(await back.ask(frames.Ping), frames.Pong)


async def test_an_id_in_use_has_one_home(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key, other = await admin(r), pki.new_key(), pki.new_key()
        first, second = await token_for(boss, "FL-LAB"), await token_for(boss, "FL-LAB")
        lab = await connected(r, await request(r, first, key), key)
        # somebody joined with the first meanwhile
        assert await request(r, second, other) == "enrolment-refused"
        assert await boss.refused(frames.Enrol, "FL-LAB", "client", False, 0) == "conflict"
        assert await boss.refused(frames.Enrol, "fl-lab", "client", False, 0, True) == "conflict"
        # a lost answer costs nothing
        assert isinstance(await request(r, first, key), frames.Certificate)
        replacing = await token_for(boss, "FL-LAB", replaces=True)
        also = await token_for(boss, "FL-LAB", replaces=True)
        # a token that nobody used changes nothing
        assert isinstance(await lab.ask(frames.Ping), frames.Pong)
        new = await connected(r, await request(r, replacing, other), other)
        error = await lab.next()
        assert codec_name(error) == "replaced"
        assert await lab.next() is None
        assert await request(r, first, key) == "enrolment-refused"
        # it was made for the home that is gone
        assert await request(r, also, key) == "enrolment-refused"
        assert isinstance(await new.ask(frames.Ping), frames.Pong)
        assert isinstance(await request(r, replacing, other), frames.Certificate)


async def test_what_is_under_way_in_the_old_home_ends_when_it_is_replaced(tmp_path: Path) -> None:
    """A renewal, a rotation and prekeys that HQ has read, and gets to when another home has the
    id.
    """
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        token = await token_for(boss, "FL-LAB")
        chain = await request(r, token, key)
        assert isinstance(chain, frames.Certificate)
        old = pki.load_der(chain.chain[0])
        assert isinstance(
            await request(r, await token_for(boss, "FL-LAB", replaces=True), pki.new_key()),
            frames.Certificate,
        )
        with pytest.raises(Replaced):
            await r.hq.enrolments.renew(
                "FL-LAB", pki.make_csr(pki.new_key(), "FL-LAB"), pki.serial(old)
            )
        with pytest.raises(Replaced):
            r.hq.trust.require(pki.serial(old))
        with pytest.raises(Replaced):
            r.hq.trust.identify(old)
        revoked = await r.hq.engine.in_store(r.hq.trust.crl)
        assert x509.load_der_x509_crl(revoked).get_revoked_certificate_by_serial_number(
            old.serial_number
        )


async def test_a_renewal_that_hq_gets_to_after_a_revocation_gives_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, lab = await admin(r), await r.person("FL-LAB")
        serial = pki.serial(lab.chain[0])
        assert isinstance(await boss.ask(frames.Revoke, "FL-LAB", "stolen"), frames.Ok)
        before = len(r.hq.store.certificates("FL-LAB"))
        with pytest.raises(Revoked):
            await r.hq.enrolments.renew("FL-LAB", pki.make_csr(pki.new_key(), "FL-LAB"), serial)
        with pytest.raises(Revoked):
            r.hq.trust.require(serial)
        assert len(r.hq.store.certificates("FL-LAB")) == before


async def test_an_admin_is_replaced_as_everybody(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, key = await admin(r), pki.new_key()
        assert await boss.refused(frames.Enrol, "BOSS", "admin", False, 0) == "conflict"
        token = await token_for(boss, "BOSS", role="admin", replaces=True)
        new = await connected(r, await request(r, token, key), key)
        assert codec_name(await boss.next()) == "replaced"
        assert isinstance(await new.ask(frames.List, "pending", "", ""), frames.Listing)


# -- the CA is elsewhere ---------------------------------------------------------------------------


@asynccontextmanager
async def offline(path: Path) -> AsyncIterator[HQ]:
    """An HQ without its CA, its engine running."""
    init_hq(
        path / "hq",
        address="127.0.0.1:1",
        name="DC-HQ",
        listen="127.0.0.1:0",
        offline_ca=path / "ca",
        admin_home=path / "admin",
    )
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
        token = decode_token(
            await hq.enrolments.token("FL-LAB", "client", approve=False, valid_s=0)
        )
        key, next_key = pki.new_key(), pki.new_key()
        csr, renewal = pki.make_csr(key, "FL-LAB"), pki.make_csr(next_key, "FL-LAB")
        assert (await hq.enrolments.request("FL-LAB", token.secret, csr)).state == WAITS_FOR_CA
        signed = sign_offline(open_vault(tmp_path / "ca"), await hq.ca_exchange.export())
        assert await hq.ca_exchange.take(signed) == 2  # a certificate and a list
        issued = await hq.enrolments.request("FL-LAB", token.secret, csr)
        assert issued.state == ISSUED
        chain = [pki.load_der(c) for c in issued.chain]
        first = Identity.generate("FL-LAB").make_bundle(key, chain, now_ms())
        assert await hq.directory.register("FL-LAB", first.raw)
        waiting = await hq.enrolments.renew("FL-LAB", renewal)
        assert (waiting.state, waiting.chain) == (WAITS_FOR_CA, ())
        assert await hq.enrolments.renew("FL-LAB", renewal) == waiting
        assert [row["name"] for row in await hq.enrolments.pending()] == ["FL-LAB"]
        signed = sign_offline(open_vault(tmp_path / "ca"), await hq.ca_exchange.export())
        assert await hq.ca_exchange.take(signed) == 2
        assert await hq.ca_exchange.take(signed) == 0
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
            await hq.ca_exchange.take(b"{}")


async def test_what_another_ca_signed_is_not_believed(tmp_path: Path) -> None:
    async with offline(tmp_path) as hq, offline(tmp_path / "other") as other:
        csr = pki.make_csr(pki.new_key(), "FL-LAB")
        for here in (hq, other):
            token = decode_token(
                await here.enrolments.token("FL-LAB", "client", approve=False, valid_s=0)
            )
            await here.enrolments.request("FL-LAB", token.secret, csr)
        foreign = sign_offline(
            open_vault(tmp_path / "other" / "ca"), await other.ca_exchange.export()
        )
        with pytest.raises(CipherBoxError):
            await hq.ca_exchange.take(foreign)
        with pytest.raises(InvalidRequest, match="another CA"):
            sign_offline(open_vault(tmp_path / "other" / "ca"), await hq.ca_exchange.export())
        assert [row["state"] for row in await hq.enrolments.pending()] == ["approved"]


@pytest.mark.parametrize("what", ["enrolment", "renewal"])
@pytest.mark.parametrize("how", ["revoked", "replaced"])
async def test_requests_at_an_offline_ca_end_with_their_client(
    tmp_path: Path, what: str, how: str
) -> None:
    """Carried away before, back after: nothing is issued, and what was signed is on the next
    list.
    """
    async with offline(tmp_path) as hq:
        vault = open_vault(tmp_path / "ca")
        key, pending = pki.new_key(), pki.new_key()
        await enrolled(hq, "FL-LAB", key, tmp_path)
        csr = pki.make_csr(pending, "FL-LAB")
        if what == "renewal":
            assert (await hq.enrolments.renew("FL-LAB", csr)).state == WAITS_FOR_CA
        else:
            token = decode_token(
                await hq.enrolments.token(
                    "FL-LAB", "client", approve=False, valid_s=0, replaces=True
                )
            )
            assert (await hq.enrolments.request("FL-LAB", token.secret, csr)).state == WAITS_FOR_CA
        carried = await hq.ca_exchange.export()
        if how == "revoked":
            await hq.enrolments.revoke("FL-LAB", "stolen")
        else:
            await enrolled(hq, "FL-LAB", pki.new_key(), tmp_path, replaces=True)
        # the list alone
        assert await hq.ca_exchange.take(sign_offline(vault, carried)) == int(how == "revoked")
        if what == "renewal":
            with pytest.raises((Revoked, EnrolmentRefused)):
                await hq.enrolments.renew("FL-LAB", csr)
        else:
            with pytest.raises(EnrolmentRefused, match="cancelled"):
                await hq.enrolments.request("FL-LAB", token.secret, csr)
        rows = [
            row
            for row in hq.store.certificates("FL-LAB")
            if pki.spki_of(pki.load_der(row.der)) == pki.spki(pending.public_key())
        ]
        assert rows
        assert all(row.revoked_at for row in rows)
        wanted = (await hq.ca_exchange.export()).decode()
        assert all(row.serial in wanted for row in rows)
        assert bool(hq.trust.revoked_at("FL-LAB")) == (how == "revoked")


async def enrolled(
    hq: HQ, name: str, key: pki.PrivateKey, path: Path, *, replaces: bool = False
) -> None:
    """A client whose certificate was carried back from the offline CA."""
    token = decode_token(
        await hq.enrolments.token(name, "client", approve=False, valid_s=0, replaces=replaces)
    )
    csr = pki.make_csr(key, name)
    assert (await hq.enrolments.request(name, token.secret, csr)).state == WAITS_FOR_CA
    assert (
        await hq.ca_exchange.take(
            sign_offline(open_vault(path / "ca"), await hq.ca_exchange.export())
        )
        >= 1
    )
    assert (await hq.enrolments.request(name, token.secret, csr)).state == ISSUED
