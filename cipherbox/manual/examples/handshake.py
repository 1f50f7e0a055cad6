"""handshake: two clients make a session of their own through HQ, which only carries the bytes.

    cipherbox python handshake.py HOME_A begin CA-RC     at FL-LAB
    cipherbox python handshake.py HOME_B answer FL-LAB   at CA-RC

HandshakeMsg1 is the offer of who answers, HandshakeMsg2 the answer of who begins; then application
messages go both ways under a Double Ratchet.  Every envelope around them is sealed and signed
besides, as always.  (For messages in sessions without such a program: cipherbox send --wrap
ratchet.)
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import trio

from cipherbox.client import HandshakeBuilder, SecureContext, SecureSession, open_client

Say = Callable[[bytes], Awaitable[None]]
Hear = Callable[[], Awaitable[bytes]]


async def begin(context: SecureContext, peer: str, say: Say, hear: Hear) -> SecureSession:
    """FL-LAB: waits for the offer, answers it, speaks first."""
    handshake: HandshakeBuilder = context.create_session(peer.encode())
    await say(b"ready")
    first, _ = handshake.begin(await hear())
    await say(first)
    return handshake.session


async def answer(context: SecureContext, peer: str, say: Say, hear: Hear) -> SecureSession:
    """CA-RC: makes the offer when the other is ready."""
    handshake = context.create_session(peer.encode())
    await hear()
    await say(handshake.offer())
    handshake.finish(await hear())
    return handshake.session


async def main(home: str, role: str, peer: str) -> str:
    async with open_client(home) as client, client.consume() as deliveries:

        async def say(data: bytes) -> None:
            await client.publish(data, to=peer)

        async def hear() -> bytes:
            async for delivery in deliveries:
                await client.ack(delivery)
                # who that is HQ cannot choose: the envelope is signed
                if delivery.sender_id == peer:
                    return delivery.messages[0].content
            raise EOFError

        session = await (begin if role == "begin" else answer)(SecureContext(), peer, say, hear)
        if role == "begin":
            await say(session.encrypt(b"the sample is ready", b"17"))
            return session.decrypt(await hear(), b"17").decode()
        text = session.decrypt(await hear(), b"17").decode()
        await say(session.encrypt(f"thanks for '{text}'".encode(), b"17"))
        return text


if __name__ == "__main__":
    print(trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3]))
