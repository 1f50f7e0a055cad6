"""Calls of a client about exchanges, queues, bindings, and what HQ can show."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from cipherbox.checks import checked
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.receiving.delivery import ranges
from cipherbox.envelope.ids import split_message_id
from cipherbox.errors import InvalidRequest
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

TYPES = {"direct": 0, "fanout": 1, "topic": 2}


@checked
class TopologyCalls:
    """Mixed into `Client`."""

    connection: ReconnectingConnection

    async def declare_exchange(self, name: str, type: str = "direct") -> None:
        """Makes an exchange (direct, fanout or topic), or finds it the same; Conflict if it is
        another type.
        """
        if type not in TYPES:
            raise InvalidRequest(f"an exchange is {', '.join(TYPES)}, not {type!r}")
        await self.connection.request(frames.DeclareExchange, name=name, type=TYPES[type])

    async def delete_exchange(self, name: str) -> None:
        """Deletes an exchange and its bindings."""
        await self.connection.request(frames.DeleteExchange, name=name)

    async def declare_queue(
        self,
        name: str,
        owner: str = "",
        readers: Sequence[str] = (),
        *,
        ttl_s: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """Makes a queue, or finds it the same.  Only an admin names another owner.

        What waits longer than ``ttl_s``, and the oldest above ``max_length``, become dead letters;
        0: no limit, None:  as it is.
        """
        limits = [frames.KEEP if value is None else value for value in (ttl_s, max_length)]
        await self.connection.request(
            frames.DeclareQueue,
            name=name,
            owner=owner,
            readers=list(readers),
            ttl_s=limits[0],
            max_length=limits[1],
        )

    async def dead_letters(self, queue: str = "", *, settled: bool = False) -> list[dict[str, Any]]:
        """Dead letters of a queue, oldest first; "" of all, for an admin.  ``settled``: also
        redriven and dropped.
        """
        rows: list[dict[str, Any]] = []
        after = ""
        while True:
            page: frames.Listing = await self.connection.request(
                frames.ListDead, queue=queue, after=after, settled=settled
            )
            rows += orjson.loads(page.rows)
            after = page.after
            if not after:
                return rows

    async def settle_dead(self, queue: str, seqs: Sequence[int], *, drop: bool = False) -> int:
        """Puts dead letters back into their queue, or drops them for good (admin); how many."""
        count = 0
        runs = ranges(seqs)
        for at in range(0, len(runs), LIMITS.ranges_per_frame):
            answer: frames.Ok = await self.connection.request(
                frames.SettleDead,
                queue=queue,
                ranges=runs[at : at + LIMITS.ranges_per_frame],
                drop=drop,
            )
            count += answer.count
        return count

    async def delete_queue(self, name: str) -> None:
        """Deletes an empty queue and its bindings."""
        await self.connection.request(frames.DeleteQueue, name=name)

    async def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Leads a routing key (a pattern, on a topic exchange) into a queue."""
        await self.connection.request(
            frames.Bind, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Ends a binding."""
        await self.connection.request(
            frames.Unbind, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def purge(self, queue: str) -> int:
        """Moves everything waiting in a queue to the dead letters (admin); how many envelopes."""
        answer: frames.Ok = await self.connection.request(frames.Purge, queue=queue)
        return answer.count

    async def list(self, what: str, name: str = "") -> list[dict[str, Any]]:
        """All rows of exchanges, queues, bindings, clients, grants, connections or requests;
        ``name``: only that.
        """
        rows: list[dict[str, Any]] = []
        after = ""
        while True:
            page: frames.Listing = await self.connection.request(
                frames.List, what=what, name=name, after=after
            )
            rows += orjson.loads(page.rows)
            after = page.after
            if not after:
                return rows

    async def status(self, message_id: uuid.UUID | str, sender: str = "") -> frames.StatusReport:
        """Where a message is; ``found`` False: HQ has no record of it for this client."""
        envelope_id, index = split_message_id(message_id)
        answer: frames.StatusReport = await self.connection.request(
            frames.Status, sender_id=sender, message_id=envelope_id[:14] + index.to_bytes(2, "big")
        )
        return answer

    async def ping(self) -> None:
        """Asks HQ for a sign of life; NetworkError if there is none."""
        await self.connection.request(frames.Ping)
