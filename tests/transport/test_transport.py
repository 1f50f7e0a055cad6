"""The TLS stream: trio's own conformance checks, what a refusal says, addresses."""

from __future__ import annotations

import os
import ssl
import sys
from datetime import timedelta

import pytest
import trio
import trio.testing

from cipherbox import clock, pki
from cipherbox.errors import CredentialsError, NetworkError, TimedOut
from cipherbox.net import tls
from cipherbox.net.connecting import connect, parse_address
from cipherbox.net.tls import (
    Cut,
    TlsStream,
    client_context,
    first_contact_context,
    server_context,
    shake_hands,
)
from tests.parties import party, world

PATIENCE_S = 60.0


def hq_context() -> ssl.SSLContext:
    here = world()
    key = pki.new_key()
    chain = [pki.issue_server(here.issuing, key.public_key(), "DC-HQ"), here.issuing.certificate]
    return server_context(chain, key, [here.root.certificate, here.issuing.certificate])


def lab_context() -> ssl.SSLContext:
    lab = party("FL-LAB")
    return client_context(world().root.certificate, lab.chain, lab.key)


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return client, await listener.accept()


async def tls_pair() -> tuple[TlsStream, TlsStream]:
    client, server = await tcp_pair()
    a = TlsStream(client, lab_context(), server_side=False)
    b = TlsStream(server, hq_context(), server_side=True, peer="the client")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.do_handshake)
        nursery.start_soon(b.do_handshake)
    return a, b


async def test_it_is_a_trio_stream() -> None:
    await trio.testing.check_two_way_stream(tls_pair, None)


async def test_both_ends_know_whom_they_talk_to() -> None:
    a, b = await tls_pair()
    found = b.peer_certificate()
    assert found == party("FL-LAB").certificate
    server = a.peer_certificate()
    assert server is not None
    assert pki.common_name(server) == "DC-HQ"
    await a.aclose()
    await b.aclose()


async def test_many_records_come_in_few_pieces_and_whole() -> None:
    a, b = await tls_pair()
    data = os.urandom(3_000_001)
    pieces = []

    async def send() -> None:
        await a.send_all(data)
        await a.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await b.receive_some():
            pieces.append(piece)
    assert b"".join(pieces) == data
    assert len(pieces) < len(data) / 16_384  # more than a record at a time
    await b.aclose()


async def test_a_cut_reads_as_the_end_and_writes_as_a_network_error() -> None:
    a, b = await tls_pair()
    await trio.aclose_forcefully(a)
    with pytest.raises(Cut) as found:  # noqa: PT012
        while await b.receive_some():
            pass
        for _ in range(100):
            await b.send_all(bytes(100_000))
    assert isinstance(found.value, NetworkError)
    assert isinstance(found.value, trio.BrokenResourceError)
    await b.aclose()


async def test_hq_under_another_name_is_refused() -> None:
    here = world()
    lab = party("MA-LAB")  # a client's certificate has no server's name and purpose
    client, server = await tcp_pair()
    a = TlsStream(
        client, client_context(here.root.certificate), server_side=False, peer="hq.example.org"
    )
    context = server_context(lab.chain, lab.key, [here.root.certificate])
    b = TlsStream(server, context, server_side=True)
    errors: list[Exception] = []

    async def shake(stream: TlsStream) -> None:
        try:
            await stream.do_handshake()
        except (CredentialsError, NetworkError) as error:
            errors.append(error)
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake, a)
        nursery.start_soon(shake, b)
    assert any(isinstance(e, CredentialsError) and "hq.example.org" in str(e) for e in errors)
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)


async def serve_bytes(answer: bytes, nursery: trio.Nursery) -> str:
    """A port that answers anything with these bytes and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer:
            await stream.send_all(answer)
        else:
            await trio.sleep_forever()

    listeners = await nursery.start(trio.serve_tcp, handle, 0)
    host, port = listeners[0].socket.getsockname()[:2]
    return f"127.0.0.1:{port}" if host else ""


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ready\r\n" * 10, b"\x00" * 50]
)
async def test_a_port_that_speaks_something_else(answer: bytes) -> None:
    async with trio.open_nursery() as nursery:
        address = await serve_bytes(answer, nursery)
        with pytest.raises(NetworkError, match=address):
            await connect(address, lab_context(), nursery)
        nursery.cancel_scope.cancel()


async def test_a_silent_port_a_closed_port_and_no_such_host() -> None:
    async with trio.open_nursery() as nursery:
        silent = await serve_bytes(b"", nursery)
        with pytest.raises(TimedOut, match=r"did not answer within 0\.3 s"):
            await connect(silent, lab_context(), nursery, timeout_s=0.3)
        client, server = await tcp_pair()
        port = server.socket.getsockname()[1]
        await client.aclose()
        await server.aclose()
        with pytest.raises(NetworkError, match="is HQ running"):
            await connect(f"127.0.0.1:{port}", lab_context(), nursery)
        with pytest.raises(NetworkError, match="no address"):
            await connect("", lab_context(), nursery)
        nursery.cancel_scope.cancel()


async def test_the_second_address_is_taken_when_the_first_does_not_answer() -> None:
    client, server = await tcp_pair()
    dead = server.socket.getsockname()[1]
    await client.aclose()
    await server.aclose()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]

    async def accept() -> None:
        tls = TlsStream(await listener.accept(), hq_context(), server_side=True)
        await tls.do_handshake()
        await tls.send_all(b"here")
        await tls.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        stream = await connect(f"127.0.0.1:{dead}, 127.0.0.1:{port}", lab_context(), nursery)
        assert await stream.receive_some() == b"here"
        await stream.aclose()
    await listener.aclose()


@pytest.mark.parametrize(("ahead_days", "says"), [(-500, "has ended"), (500, "is not valid yet")])
def test_a_clock_is_named_when_dates_do_not_fit(
    ahead_days: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HQ's certificate as this clock sees it when it, or HQ's, is off by so much."""
    here, now, key = world(), clock.now(), pki.new_key()
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(days=ahead_days))
    leaf = pki.issue_server(here.issuing, key.public_key(), "DC-HQ")
    monkeypatch.setattr(clock, "now", lambda: now)
    server = server_context([leaf, here.issuing.certificate], key, [here.root.certificate])
    with pytest.raises(CredentialsError, match=says) as caught:
        shake_hands(server, lab_context())
    assert f"it is {now:%Y-%m-%d}" in str(caught.value)
    assert "clock" in str(caught.value)
    shake_hands(hq_context(), lab_context())


def test_contexts_are_strict() -> None:
    for context in (hq_context(), lab_context(), first_contact_context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert lab_context().verify_mode == ssl.CERT_REQUIRED
    assert lab_context().check_hostname


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hq.example.org:7443", ("hq.example.org", 7443, False)),
        ("[::1]:1", ("::1", 1, False)),
        ("wss://hq.example.org:443/", ("hq.example.org", 443, True)),
    ],
)
def test_addresses(text: str, parsed: tuple[str, int, bool]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "text", ["hq", ":1", "hq:port", "hq:99999", "http://hq:1/x", "hq:1/path", "wss://hq"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(NetworkError, match="no address"):
        parse_address(text)


async def test_a_large_frame_goes_right_into_its_buffer() -> None:
    from cipherbox.net.connecting import fill
    from cipherbox.wire import codec
    from cipherbox.wire.connection import LARGE
    from tests.wire.test_frames import opened

    a, b = await tls_pair()
    bodies = [b"small", os.urandom(3 * LARGE), b"next", os.urandom(LARGE + 1), b"last"]
    data = b"".join(codec.encode_sends([(n + 1, 0, 0, body) for n, body in enumerate(bodies)]))
    wire, got, direct = opened("server"), [], 0

    async def send() -> None:
        await a.send_all(data)
        await a.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while True:
            direct += wire.wanted() is not None
            if not await fill(b, wire):
                break
            got += [item[3] for event in wire.events() for item in event.items]
    assert got == bodies
    assert direct >= 2
    await b.aclose()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux waits for many bytes")
async def test_a_receive_waits_for_much_of_what_is_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tls, "PART_S", 10.0)
    a, b = await tls_pair()
    size, got, turns = 1_000_000, 0, 0

    async def send() -> None:
        view = memoryview(bytes(size))
        for at in range(0, size, 10_000):
            await a.send_all(view[at : at + 10_000])
            await trio.testing.wait_all_tasks_blocked()
        await a.send_all(b"more")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while got < size:
            b.expect(size - got)
            got += await b.receive_into(memoryview(bytearray(size - got)))
            turns += 1
        b.expect(0)
        assert await b.receive_some() == b"more"  # a small piece is not waited for
    assert turns < 15  # 100 without
    await a.aclose()
    await b.aclose()


async def test_little_of_what_is_expected_is_returned_after_a_moment() -> None:
    """Whoever watches a slow peer's progress must see it."""
    a, b = await tls_pair()
    b.expect(1_000_000)
    await a.send_all(bytes(1000))
    with trio.fail_after(60):
        assert len(await b.receive_some()) == 1000
    await a.aclose()
    await b.aclose()


@pytest.mark.parametrize("end", ["close", "cut"])
async def test_the_stream_may_end_before_what_is_expected(end: str) -> None:
    a, b = await tls_pair()
    b.expect(1_000_000)
    await a.send_all(bytes(1000))
    if end == "close":
        await a.aclose()
    else:
        await trio.aclose_forcefully(a._below)
    assert len(await b.receive_some()) == 1000
    assert await b.receive_some() == b""
    await b.aclose()


async def test_two_tasks_cannot_receive_at_once() -> None:
    a, b = await tls_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await a.receive_into(memoryview(bytearray(10)))
        await b.send_all(b"done")
    await a.aclose()
    await b.aclose()


async def test_a_small_frame_is_sent_without_a_turn_of_the_loop() -> None:
    a, b = await tls_pair()
    with trio.testing.assert_no_checkpoints():
        sent = a.send_now(b"hello")
    assert sent is (sys.platform == "linux")
    if not sent:
        await a.send_all(b"")
    assert await b.receive_some() == b"hello"
    await a.aclose()
    assert a.send_now(b"late") is False
    with pytest.raises(trio.ClosedResourceError):
        await a.send_all(b"")
    await b.aclose()


async def test_what_the_network_does_not_take_now_is_sent_first_by_the_next_send() -> None:
    a, b = await tls_pair()
    pieces = [bytes([number]) * 50_000 for number in range(200)]
    received = bytearray()

    async def read() -> None:
        while len(received) < sum(map(len, pieces)) + 3:
            received.extend(await b.receive_some())

    left = 0
    async with trio.open_nursery() as nursery:
        for piece in pieces:  # nobody reads: the buffers of the two sockets fill up
            left += not a.send_now(piece)
        nursery.start_soon(read)
        await a.send_all(b"end")
    assert left
    assert received == b"".join(pieces) + b"end"
    await a.aclose()
    await b.aclose()


async def test_only_one_task_sends() -> None:
    a, b = await tls_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send_all, bytes(20_000_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            a.send_now(b"between")
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)
