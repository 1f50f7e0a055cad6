"""handshake: two clients create a session of their own through HQ, which only relays the bytes.

    cipherbox python handshake.py HOME_A begin CA-RC     at FL-LAB
    cipherbox python handshake.py HOME_B answer FL-LAB   at CA-RC

HandshakeMsg1 is the responder's offer, HandshakeMsg2 the initiator's answer; then application
messages go both ways under a Double Ratchet.  Every envelope around them is also sealed and signed,
as always.  (For messages in sessions without such a program: cipherbox send --wrap ratchet.)
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio

from cipherbox.client import HandshakeBuilder, SecureContext, SecureSession, open_client

Send = Callable[[bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[bytes]]


async def begin(context: SecureContext, peer: str, send: Send, receive: Receive) -> SecureSession:
    """At FL-LAB: announce itself, answer the offer, and return the session."""
    handshake: HandshakeBuilder = context.create_session(peer.encode())
    await send(b"ready")
    first, _ = handshake.begin(await receive())
    await send(first)
    return handshake.session


async def answer(context: SecureContext, peer: str, send: Send, receive: Receive) -> SecureSession:
    """At CA-RC: make an offer when the peer is ready, and return the session."""
    handshake = context.create_session(peer.encode())
    await receive()
    await send(handshake.offer())
    handshake.finish(await receive())
    return handshake.session


async def main(home: str, role: str, peer: str) -> str:
    async with open_client(home) as client, client.consume() as deliveries:

        async def send(data: bytes) -> None:
            await client.publish(data, to=peer)

        async def receive() -> bytes:
            async for delivery in deliveries:
                await client.ack(delivery)
                # HQ cannot forge the sender: the envelope is signed
                if delivery.sender_id == peer:
                    return delivery.messages[0].content
            raise EOFError

        session = await (begin if role == "begin" else answer)(SecureContext(), peer, send, receive)
        if role == "begin":
            await send(session.encrypt(b"the sample is ready", b"17"))
            return session.decrypt(await receive(), b"17").decode()
        text = session.decrypt(await receive(), b"17").decode()
        await send(session.encrypt(f"thanks for '{text}'".encode(), b"17"))
        return text


if __name__ == "__main__":
    print(trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3]))
