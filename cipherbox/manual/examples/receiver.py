"""receiver: declare a queue, bind it to a route, and receive each message once.

    cipherbox python receiver.py HOME COUNT

Every message is a line of HOME/data/received_messages.jsonl before it is acknowledged.  An admin
grants the right to declare first: cipherbox grant CA-RC declare
"""

from __future__ import annotations

import sys

import trio

from cipherbox.client import Receiver, open_client

EXCHANGE, QUEUE, KEY = "my_exchange", "my_queue", "my_key"


async def main(home: str, count: int) -> int:
    # Prints every step, such as: [RECEIVER] Decrypted message ...
    async with open_client(home, on_event=print) as client:
        await client.declare_exchange(EXCHANGE)
        await client.declare_queue(QUEUE)
        await client.bind(EXCHANGE, QUEUE, KEY)
        receiver = Receiver(client)
        return await receiver.run([QUEUE], count=count)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
