"""A running HQ, asked over real sockets: the way of a message, and everything that must be
refused.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import attrs
import pytest
import trio
import trustme

from cipherbox import clock, pki
from cipherbox.errors import CipherBoxError, CredentialsError, NetworkError
from cipherbox.limits import LIMITS
from cipherbox.net.tls import client_context
from cipherbox.pki.revocation_lists import check_crl
from cipherbox.sealing.body import pack, text_message
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries
from tests.parties import now_ms
from tests.server.hq import BIG, PATIENCE_S, Running, codec_name, consumed, running, two

# -- the way of a message --------------------------------------------------------------------------


@pytest.mark.parametrize("websocket", [False, True])
async def test_published_confirmed_delivered_acknowledged(tmp_path: Path, websocket: bool) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB", websocket=websocket)
        rc = await r.client("CA-RC", websocket=websocket)
        await consumed(rc, "box.CA-RC")
        sealed = r.people["FL-LAB"].seal(r.people["CA-RC"], text="x" * 100_000)
        confirm = await lab.publish(sealed.raw)
        assert isinstance(confirm, frames.Confirm)
        assert confirm.ranges == [frames.ConfirmRange(1, 1, 0, 0)]
        assert confirm.places == [frames.Place(["box.CA-RC"], [])]
        delivery = await rc.next()
        assert delivery == Deliveries(
            1, [(1, 1, confirm.accepted_at, confirm.log_position, sealed.raw)]
        )
        acked = await rc.ask(frames.Ack, "box.CA-RC", [frames.Range(1, 1)])
        assert acked == frames.AckConfirmed(rc.correlation, 1, 0)
        report = await lab.ask(frames.Status, "", sealed.envelope_id)
        assert report.found
        assert [(t.queue, t.client_id, t.state) for t in report.traces] == [
            ("box.CA-RC", "CA-RC", 2)
        ]


async def test_pipelined_publishes_are_confirmed_in_ranges_and_a_restart_delivers_them(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        people = dict(r.people)
        sealed = [people["FL-LAB"].seal(people["CA-RC"]) for _ in range(50)]
        await lab.stream.send_all(
            b"".join(codec.encode_sends([(i + 1, 0, 0, s.raw) for i, s in enumerate(sealed)]))
        )
        confirmed = 0
        while confirmed < 50:
            event = await lab.next()
            confirmed += sum(c.count for c in event.ranges)
        answer = await rc.ask(frames.Fetch, "box.CA-RC", 5, BIG)
        assert [e.seq for e in answer.entries] == [1, 2, 3, 4, 5]
        assert answer.waiting == 45
    async with running(tmp_path / "hq") as r:
        r.people.update(people)
        rc = await r.client("CA-RC")
        await consumed(rc, "box.CA-RC")
        got: list[bytes] = []
        while len(got) < 50:
            got += [e[4] for e in (await rc.next()).entries]
        assert got == [s.raw for s in sealed]
        await lab_sends_again_and_is_confirmed(r, sealed[0].raw)


async def lab_sends_again_and_is_confirmed(r: Running, raw: bytes) -> None:
    lab = await r.client("FL-LAB")
    confirm = await lab.publish(raw)
    assert confirm.ranges[0].outcome == 1


async def test_what_a_lost_connection_held_is_delivered_to_the_next(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        await consumed(rc, "box.CA-RC")
        await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
        assert (await rc.next()).entries[0][1] == 1
        await rc.stream.aclose()
        again = await r.client("CA-RC")
        await consumed(again, "box.CA-RC")
        assert (await again.next()).entries[0][:2] == (1, 2)


# -- envelopes HQ must not take --------------------------------------------------------------------


async def test_envelopes_that_are_refused_leave_the_connection_alive(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, _ = await two(r)
        me, rc = r.people["FL-LAB"], r.people["CA-RC"]
        same = {"plain": pack([text_message("hello")]), "sealed_at": now_ms()}
        good = me.seal(rc, **same)
        other = await r.person("NY-RC")
        cases = [
            (b"garbage", "envelope-refused"),
            (good.raw[:-1], "envelope-refused"),
            (good.raw[:4] + b"\x03" + good.raw[5:], "envelope-refused"),
            (rc.seal(me).raw, "wrong-sender"),
            (bytes(LIMITS.envelope_bytes + 1), "too-large"),
            (me.seal(rc, exchange="none", routing_key="k").raw, "not-found"),
            (me.seal(rc, exchange="default_exchange", routing_key="default_key").raw, "no-route"),
            (me.seal(rc, routing_key="box.NY-RC").raw, "route-changed"),
            (me.seal(rc, routing_key="nothing").raw, "not-found"),
        ]
        for raw, error in cases:
            assert await lab.refused(frames.Send, 0, 0, raw) == error
        assert isinstance(await lab.publish(good.raw), frames.Confirm)
        changed = me.seal(rc, envelope_id=good.envelope_id)
        assert await lab.refused(frames.Send, 0, 0, changed.raw) == "id-reused"
        another = me.seal(rc, envelope_id=good.envelope_id, generation=1)
        assert await lab.refused(frames.Send, 0, 0, another.raw) == "commitment-changed"
        newer = me.seal(rc, envelope_id=good.envelope_id, generation=1, **same)
        assert isinstance(await lab.publish(newer.raw), frames.Confirm)
        assert (
            await lab.refused(frames.Send, 0, 0, me.seal(_stranger(r, other)).raw)
            == "unknown-recipient"
        )


def _stranger(r: Running, like: object) -> object:
    from tests.parties import party

    del r, like
    return attrs.make_class("Stranger", ["identity"])(party("NOBODY").identity)


async def test_route_changed_carries_the_route_as_it_is(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, _ = await two(r)
        me, rc = r.people["FL-LAB"], r.people["CA-RC"]
        ny = await r.person("NY-RC")
        admin = await r.dial(await r.person("BOSS", role="admin"))
        assert isinstance(
            await admin.ask(frames.Grant, "NY-RC", "read", "default_queue", True), frames.Ok
        )
        route = await lab.ask(frames.Resolve, "default_exchange", "default_key")
        assert [(q.queue, q.readers) for q in route.queues] == [("default_queue", ["NY-RC"])]
        error = await lab.publish(
            me.seal(rc, exchange="default_exchange", routing_key="default_key").raw
        )
        assert codec_name(error) == "route-changed"
        told = codec.decode(0x12, error.detail)
        assert [(q.queue, q.readers) for q in told.queues] == [("default_queue", ["NY-RC"])]
        sent = me.seal(ny, exchange="default_exchange", routing_key="default_key")
        assert isinstance(await lab.publish(sent.raw), frames.Confirm)


# -- bytes that are no protocol --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("junk", "error"),
    [
        (b"\xff\xff\xff\xff", "frame-too-large"),
        (bytes(4), "protocol"),
        (b"\x00\x00\x00\x01\xee", "protocol"),
        (codec.encode(frames.Ok(1, 1)), "unexpected-frame"),
        (codec.encode(frames.Enrol(1, "X", "admin", False, 0)), "unexpected-frame"),
        (b"\x00\x00\x00\x03\x25\x00\x00", "protocol"),
    ],
)
async def test_a_fault_is_told_and_ends_this_connection_alone(
    tmp_path: Path, junk: bytes, error: str
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        await lab.stream.send_all(junk)
        told = await lab.next()
        assert codec_name(told) == error
        assert await lab.next() is None
        assert isinstance(await rc.ask(frames.List, "queues", "", ""), frames.Listing)


async def test_garbage_plain_text_and_silence_instead_of_tls(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, client_hello_s=2.0)
    async with running(tmp_path / "hq", limits=limits) as r:
        host, port = r.address.rsplit(":", 1)
        for junk in (os.urandom(500), b"GET / HTTP/1.1\r\n\r\n", b""):
            stream = await trio.open_tcp_stream(host, int(port))
            if junk:
                await stream.send_all(junk)
            with trio.fail_after(PATIENCE_S):
                while True:
                    try:
                        if not await stream.receive_some():
                            break
                    except trio.BrokenResourceError:
                        break
            await stream.aclose()
        quiet = await r.dial(await r.person("FL-LAB"), hello=False)
        await quiet.stream.send_all(b"\x00\x00")
        told = await quiet.next()
        assert codec_name(told) == "handshake-timeout"
        assert isinstance(
            await (await r.client("CA-RC")).ask(frames.List, "queues", "", ""), frames.Listing
        )


async def test_silence_after_the_opening_ends_the_connection_and_pings_keep_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, heartbeat_s=1)) as r:
        lab = await r.client("FL-LAB")
        told = await lab.next()
        assert codec_name(told) == "idle-timeout"


async def test_half_a_frame_and_a_cut_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        whole, half = me.seal(you), me.seal(you)
        data = b"".join(codec.encode_sends([(1, 0, 0, whole.raw), (2, 0, 0, half.raw)]))
        await lab.stream.send_all(data[:-10])
        assert isinstance(await lab.next(), frames.Confirm)
        await lab.stream.aclose()
        answer = await rc.ask(frames.Fetch, "box.CA-RC", 10, BIG)
        assert [e.envelope for e in answer.entries] == [whole.raw]
        again = await r.client("FL-LAB")
        assert (await again.publish(half.raw)).ranges[0].outcome == 0


# -- certificates ----------------------------------------------------------------------------------


async def fails_to_open(r: Running, context: ssl.SSLContext) -> CipherBoxError:
    """What a client is told: in TLS 1.3 it learns only at its first read."""
    with pytest.raises((CredentialsError, NetworkError)) as found:
        await (await r.open(context)).hello()
    return found.value


async def test_foreign_expired_and_unrecorded_certificates_are_refused_in_plain_words(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        other = pki.new_root("OTHER")
        foreign = pki.new_issuing("OTHER", other)
        key = pki.new_key()
        strange = [pki.issue_client(foreign, key.public_key(), "FL-LAB"), foreign.certificate]
        error = await fails_to_open(r, client_context(r.root, strange, key))
        assert isinstance(error, CredentialsError)
        assert "another CA" in str(error)
        late = [
            pki.issue_client(r.issuing, key.public_key(), "FL-LAB", days=0),
            r.issuing.certificate,
        ]
        r.hq.trust.put(r.hq.trust.record(late[0]))
        unrecorded = [pki.issue_client(r.issuing, key.public_key(), "X"), r.issuing.certificate]
        # TLS accepts both, and HQ itself refuses them: by the time that it trusts
        for chain, says in ((late, "of FL-LAB expired on"), (unrecorded, "no record")):
            raw = await r.open(client_context(r.root, chain, key))
            hello = frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 30, "")
            await raw.stream.send_all(raw.wire.send(hello))
            told = await raw.next()
            assert codec_name(told) == "credentials"
            assert says in told.message


async def test_hq_of_another_root_is_not_trusted(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        error = await fails_to_open(r, client_context(pki.new_root("OTHER").certificate))
        assert isinstance(error, CredentialsError)


async def test_tls_1_2_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        context = client_context(r.root)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        error = await fails_to_open(r, context)
        assert "TLS 1.3" in str(error)


async def test_a_certificate_of_a_public_ca_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        issued = trustme.CA().issue_cert("FL-LAB")
        context = client_context(r.root)
        issued.configure_cert(context)
        error = await fails_to_open(r, context)
        assert isinstance(error, CredentialsError)


async def test_without_a_certificate_one_can_only_enrol_and_only_for_a_while(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, anonymous_s=1.0)) as r:
        nobody = await r.dial()
        root = await nobody.ask(frames.GetRoot)
        assert root.root == pki.der(r.root)
        assert codec_name(await nobody.ask(frames.List, "clients", "", "")) == "unexpected-frame"
        patient = await r.dial()
        assert codec_name(await patient.next()) == "handshake-timeout"
        assert await patient.next() is None


async def test_revocation_cuts_live_connections_and_keeps_them_out(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        admin = await r.dial(await r.person("BOSS", role="admin"))
        assert await rc.refused(frames.List, "pending", "", "") == "forbidden"
        assert isinstance(await admin.ask(frames.Revoke, "FL-LAB", "laptop stolen"), frames.Ok)
        told = await lab.next()
        assert codec_name(told) == "revoked"
        assert "laptop stolen" in told.message
        assert await lab.next() is None
        back = await r.dial(r.people["FL-LAB"], hello=False)
        await back.stream.send_all(
            back.wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 30, ""))
        )
        assert codec_name(await back.next()) == "revoked"
        sealed = r.people["CA-RC"].seal(r.people["FL-LAB"])
        assert await rc.refused(frames.Send, 0, 0, sealed.raw) == "recipient-revoked"
        crl = (await rc.ask(frames.GetRevocations)).crl
        checked = check_crl(crl, r.issuing.certificate, clock.now())
        assert list(checked.revoked) == [pki.serial(r.people["FL-LAB"].chain[0])]
        assert checked.number > 1


# -- key bundles -----------------------------------------------------------------------------------


async def test_bundles_are_taken_from_their_owner_alone_and_handed_out_whole(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        first = you.identity.bundle
        assert first is not None
        assert (await rc.ask(frames.Register, first.raw)).count == 1
        assert (await rc.ask(frames.Register, first.raw)).count == 0
        assert await lab.refused(frames.Register, first.raw) == "bundle-refused"
        assert await lab.refused(frames.Register, b"junk") == "bundle-refused"
        second = you.identity.make_bundle(you.key, you.chain, first.created_at, first)
        forged = me.identity.make_bundle(you.key, you.chain, first.created_at, first)
        assert await rc.refused(frames.Register, forged.raw) == "bundle-refused"
        assert (await rc.ask(frames.Register, second.raw)).count == 1
        anew = you.identity.make_bundle(you.key, you.chain, 5 + first.created_at)
        assert await rc.refused(frames.Register, anew.raw) == "bundle-refused"
        queries = [
            frames.BundleQuery("CA-RC", frames.NEWEST),
            frames.BundleQuery("NOBODY", frames.NEWEST),
        ]
        answer = await lab.ask(frames.GetBundles, queries, [first.hash, bytes(32)])
        assert [(a.client_id, a.state, len(a.bundles)) for a in answer.answers] == [
            ("CA-RC", 0, 1),
            ("NOBODY", 1, 0),
            ("CA-RC", 0, 1),
            ("", 1, 0),
        ]
        assert answer.answers[0].bundles == [second.raw]  # who holds none needs the newest
        (later,) = (await lab.ask(frames.GetBundles, [frames.BundleQuery("CA-RC", 1)], [])).answers
        assert (later.bundles, later.more) == ([second.raw], False)
        stored = r.hq.store.bundles("CA-RC", 0)[0]
        assert first.encrypt_keys[0].public[:32] not in stored.ciphertext


async def test_key_requests_have_a_rate(tmp_path: Path) -> None:
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, key_requests_per_minute=3)
    ) as r:
        lab, _ = await two(r)
        names = [await lab.ask(frames.GetBundles, [], []) for _ in range(4)]
        assert [type(a) for a in names[:3]] == [frames.Bundles] * 3
        assert codec_name(names[3]) == "throttled"


# -- status and lists ------------------------------------------------------------------------------


async def test_status_for_a_stranger_is_as_if_there_were_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        ny = await r.client("NY-RC")
        sealed = r.people["FL-LAB"].seal(r.people["CA-RC"])
        await lab.publish(sealed.raw)
        assert (await rc.ask(frames.Status, "FL-LAB", sealed.envelope_id)).found
        hidden = await ny.ask(frames.Status, "FL-LAB", sealed.envelope_id)
        nothing = await ny.ask(frames.Status, "FL-LAB", r.people["FL-LAB"].ids.next())
        assert attrs.evolve(hidden, correlation=0) == attrs.evolve(nothing, correlation=0)
        assert not hidden.found
