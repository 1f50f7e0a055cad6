"""Calls of a client for exchanges, queues, bindings, and HQ's listings."""

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
        """Create an exchange (direct, fanout or topic) unless it exists. Raise Conflict if its type
        differs.
        """
        if type not in TYPES:
            raise InvalidRequest(f"invalid exchange type {type!r}: must be {', '.join(TYPES)}")
        await self.connection.request(frames.DeclareExchange, name=name, type=TYPES[type])

    async def delete_exchange(self, name: str) -> None:
        """Delete an exchange and its bindings."""
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
        """Create a queue unless it exists. Only an admin may name another owner.

        Envelopes older than ``ttl_s``, and the oldest above ``max_length``, are dead-lettered; 0:
        no limit, None: unchanged.
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
        """Return the dead letters of a queue, oldest first; "" is all queues, for an admin.
        ``settled`` also includes those redriven or discarded.
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
        """Redrive dead letters into their queue, or discard them permanently (admin); return their
        number.
        """
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
        """Delete an empty queue and its bindings."""
        await self.connection.request(frames.DeleteQueue, name=name)

    async def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Bind a queue to an exchange with a routing key (a pattern, on a topic exchange)."""
        await self.connection.request(
            frames.Bind, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Delete a binding."""
        await self.connection.request(
            frames.Unbind, exchange=exchange, queue=queue, routing_key=routing_key
        )

    async def purge(self, queue: str) -> int:
        """Move all envelopes of a queue to the dead letters (admin); return their number."""
        answer: frames.Ok = await self.connection.request(frames.Purge, queue=queue)
        return answer.count

    async def list(self, what: str, name: str = "") -> list[dict[str, Any]]:
        """Return all rows of exchanges, queues, bindings, clients, grants, connections or requests,
        or only the one named ``name``.
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
        """Return the status of a message; ``found`` is False if HQ has no record of it for this
        client.
        """
        envelope_id, index = split_message_id(message_id)
        answer: frames.StatusReport = await self.connection.request(
            frames.Status, sender_id=sender, message_id=envelope_id[:14] + index.to_bytes(2, "big")
        )
        return answer

    async def ping(self) -> None:
        """Check that HQ answers. Raise NetworkError if it does not."""
        await self.connection.request(frames.Ping)
