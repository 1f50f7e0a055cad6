"""sender: send a batch of messages by route; nothing accepted is lost, whatever happens to the
connection.

    cipherbox python sender.py HOME RECEIVER MESSAGE...

An admin grants the right to publish first: cipherbox grant FL-LAB publish my_exchange
"""

from __future__ import annotations

import sys

import trio

from cipherbox.client import open_client

EXCHANGE, KEY = "my_exchange", "my_key"


async def main(home: str, receiver: str, messages: list[str]) -> None:
    async with open_client(home, on_event=print) as client:
        # Only clients on this list can decrypt, whatever readers HQ names.
        client.allow.allow(EXCHANGE, [receiver])
        confirmation = await client.publish(messages, exchange=EXCHANGE, routing_key=KEY)
        # HQ has them on stable storage.  While it is unreachable, `publish` raises `Queued`, and
        # they wait in the outbox.
        for message_id in confirmation.message_ids:
            print(f"Confirmed: {message_id}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
