"""A session over a stream: order, ends and cut lines; sessions in a file."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from cipherbox.client.sessions.secure_socket import SecureSocket, SqliteSessions
from cipherbox.errors import (
    CipherBoxError,
    DecryptionFailed,
    EnvelopeError,
    HandshakeTimeout,
    InvalidRequest,
    NetworkError,
    ProtocolError,
    SignatureInvalid,
    TooLarge,
)
from cipherbox.sealing.ratchet.secure_session import SecureContext
from cipherbox.sealing.ratchet.settings import SessionSettings


async def pair(**options: Any) -> tuple[SecureSocket, SecureSocket, Any, Any]:
    mine, yours = memory_stream_pair()
    alice, bob = SecureContext(**options), SecureContext(**options)
    found: dict[str, SecureSocket] = {}

    async def accept() -> None:
        found["b"] = await SecureSocket.accept(yours, bob, peer_key=alice.public_key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        found["a"] = await SecureSocket.connect(mine, alice, peer_key=bob.public_key)
    return found["a"], found["b"], mine, yours


async def test_messages_both_ways_and_an_end() -> None:
    a, b, _, _ = await pair()
    async with a, b:
        for turn in range(20):
            await a.send(b"%d" % turn)
            await a.send(bytes(turn * 1000))
            assert await b.receive() == b"%d" % turn
            assert await b.receive() == bytes(turn * 1000)
            await b.send(b"")
            assert await a.receive() == b""
        assert a.session.session_id == b.session.session_id
        await a.aclose()
        assert await b.receive() is None
        assert await b.receive() is None


async def test_the_same_messages_in_both_directions_at_once() -> None:
    a, b, _, _ = await pair()

    async def chat(socket: SecureSocket) -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for i in range(50):
                    await socket.send(b"%d" % i)

            nursery.start_soon(send)
            for i in range(50):
                assert await socket.receive() == b"%d" % i

    async with trio.open_nursery() as nursery:
        nursery.start_soon(chat, a)
        nursery.start_soon(chat, b)


@pytest.mark.parametrize("what", ["dropped", "doubled", "swapped", "changed", "reflected"])
async def test_what_is_not_in_its_place_is_noticed(what: str) -> None:
    a, b, mine, yours = await pair()
    sent: list[bytes] = []
    hold = mine.send_stream.send_all

    async def catch(data: bytes) -> None:
        sent.append(bytes(data))

    mine.send_stream.send_all = catch
    for text in (b"one", b"two"):
        await a.send(text)
    one, two = sent
    changed = one[:-1] + bytes([one[-1] ^ 1])
    handed = {
        "dropped": [two],
        "doubled": [one, one],
        "swapped": [two, one],
        "changed": [changed],
        "reflected": [one],
    }[what]
    if what == "reflected":
        await yours.send_stream.send_all(one)
        with pytest.raises(EnvelopeError):
            await a.receive()
        return
    for data in handed:
        await hold(data)
    if what == "doubled":
        assert await b.receive() == b"one"
    with pytest.raises(EnvelopeError):
        await b.receive()


async def test_a_cut_line_is_no_end() -> None:
    a, b, mine, _ = await pair()
    await a.send(b"x")
    await mine.aclose()
    assert await b.receive() == b"x"
    with pytest.raises(NetworkError):
        await b.receive()
    with pytest.raises(NetworkError):
        await a.send(b"y")


async def test_who_is_not_expected_and_who_is_silent(autojump_clock: Any) -> None:
    mine, yours = memory_stream_pair()
    alice, bob, other = SecureContext(), SecureContext(), SecureContext()

    async def accept() -> None:
        with pytest.raises(CipherBoxError):
            await SecureSocket.accept(yours, other)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        with pytest.raises(SignatureInvalid):
            await SecureSocket.connect(mine, alice, peer_key=bob.public_key)
    mine, yours = memory_stream_pair()
    began = trio.current_time()
    with pytest.raises(HandshakeTimeout, match="30 s"):
        await SecureSocket.connect(mine, alice)
    assert trio.current_time() - began == pytest.approx(30)
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await mine.send_all(b"x")


async def test_junk_and_size() -> None:
    mine, yours = memory_stream_pair()
    await yours.send_all(b"\xff" * 100)
    with pytest.raises(ProtocolError):
        await SecureSocket.connect(mine, SecureContext())
    a, _, _, _ = await pair(settings=SessionSettings(message_bytes=10))
    with pytest.raises(TooLarge):
        await a.send(bytes(11))


def test_sessions_in_a_file(tmp_path: Path) -> None:
    path, key = tmp_path / "sessions", bytes(range(32))
    store = SqliteSessions(path, key)
    alice, bob = SecureContext(storage=store), SecureContext()
    theirs = bob.create_session()
    first, session_id = alice.create_session().begin(theirs.offer())
    theirs.finish(first)
    sealed = alice.encrypt_message(session_id, b"before")
    store.close()
    raw = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert bob.public_key not in raw
    store = SqliteSessions(path, key)
    alice = SecureContext(alice.keypair, storage=store)
    assert bob.decrypt_message(session_id, sealed) == b"before"
    assert alice.decrypt_message(session_id, bob.encrypt_message(session_id, b"after")) == b"after"
    store.close()
    wrong = SqliteSessions(path, bytes(32))
    with pytest.raises(DecryptionFailed):
        SecureContext(storage=wrong).session(session_id)
    wrong.close()
    store = SqliteSessions(path, key)
    store.delete(session_id)
    store.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM states").fetchone() == (0,)
    db.close()
    with pytest.raises(InvalidRequest):
        SqliteSessions(path, b"short")
