"""The calls of the blocking client; written by `make generate` from those of `Client`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from cipherbox.client.blocking_contexts import BlockingConsumer, BlockingPublisher
from cipherbox.client.blocking_thread import ClientThread
from cipherbox.client.keys.own import Added
from cipherbox.client.options import PublishKeywords
from cipherbox.client.outbox.rows import Row
from cipherbox.client.outbox.tracking import Timeline
from cipherbox.client.publishing.publish import Confirmation
from cipherbox.client.publishing.splitting import Content
from cipherbox.client.receiving.calls import CONSUME_BYTES, CONSUME_ENVELOPES
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.handler import Handler, Handlers
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import CipherBoxError
from cipherbox.sealing.identity import DecryptKey
from cipherbox.wire import frames


class BlockingCalls:
    """Mixed into `BlockingClient`."""

    _thread: ClientThread

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> int:
        """As `Client.ack`."""
        return self._thread.call(lambda: self._thread.client.ack(deliveries))

    def add_key(self, key: DecryptKey) -> Added:
        """As `Client.add_key`."""
        return self._thread.call(lambda: self._thread.client.add_key(key))

    def approve(self, client_id: str, accept: bool = True) -> None:
        """As `Client.approve`."""
        self._thread.call(lambda: self._thread.client.approve(client_id, accept))

    def bind(self, exchange: str, queue: str, routing_key: str) -> None:
        """As `Client.bind`."""
        self._thread.call(lambda: self._thread.client.bind(exchange, queue, routing_key))

    def bundles(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """As `Client.bundles`."""
        return self._thread.call(lambda: self._thread.client.bundles(client_ids))

    @property
    def client_id(self) -> str:
        return self._thread.client.client_id

    def confirm_clock(self) -> None:
        """As `Client.confirm_clock`."""
        self._thread.call(self._thread.client.confirm_clock)

    def consume(
        self,
        queue: str | None = None,
        *,
        envelopes: int = CONSUME_ENVELOPES,
        size: int = CONSUME_BYTES,
    ) -> BlockingConsumer:
        """As `Client.consume`."""
        return BlockingConsumer(
            self._thread, self._thread.client.consume(queue, envelopes=envelopes, size=size)
        )

    def consume_unopened(
        self,
        queue: str | None = None,
        *,
        envelopes: int = CONSUME_ENVELOPES,
        size: int = CONSUME_BYTES,
    ) -> BlockingConsumer:
        """As `Client.consume_unopened`."""
        return BlockingConsumer(
            self._thread,
            self._thread.client.consume_unopened(queue, envelopes=envelopes, size=size),
        )

    def dead_letters(self, queue: str = "", *, settled: bool = False) -> list[dict[str, Any]]:
        """As `Client.dead_letters`."""
        return self._thread.call(lambda: self._thread.client.dead_letters(queue, settled=settled))

    def declare_exchange(self, name: str, type: str = "direct") -> None:
        """As `Client.declare_exchange`."""
        self._thread.call(lambda: self._thread.client.declare_exchange(name, type))

    def declare_queue(
        self,
        name: str,
        owner: str = "",
        readers: Sequence[str] = (),
        *,
        ttl_s: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """As `Client.declare_queue`."""
        self._thread.call(
            lambda: self._thread.client.declare_queue(
                name, owner, readers, ttl_s=ttl_s, max_length=max_length
            )
        )

    def delete_exchange(self, name: str) -> None:
        """As `Client.delete_exchange`."""
        self._thread.call(lambda: self._thread.client.delete_exchange(name))

    def delete_queue(self, name: str) -> None:
        """As `Client.delete_queue`."""
        self._thread.call(lambda: self._thread.client.delete_queue(name))

    def drain(self, begin: bool = True, most_s: int = 0) -> int:
        """As `Client.drain`."""
        return self._thread.call(lambda: self._thread.client.drain(begin, most_s))

    def enrol(
        self,
        client_id: str,
        role: str = "client",
        approve: bool = False,
        valid_s: int = 0,
        replace: bool = False,
    ) -> str:
        """As `Client.enrol`."""
        return self._thread.call(
            lambda: self._thread.client.enrol(client_id, role, approve, valid_s, replace)
        )

    def export_receipts(self, message: uuid.UUID | str) -> dict[str, bytes]:
        """As `Client.export_receipts`."""
        return self._thread.call(lambda: self._thread.client.export_receipts(message))

    def export_requests(self) -> bytes:
        """As `Client.export_requests`."""
        return self._thread.call(self._thread.client.export_requests)

    def fetch(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """As `Client.fetch`."""
        return self._thread.call(lambda: self._thread.client.fetch(queue, envelopes))

    def fetch_unopened(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """As `Client.fetch_unopened`."""
        return self._thread.call(lambda: self._thread.client.fetch_unopened(queue, envelopes))

    def finish_keys(self) -> None:
        """As `Client.finish_keys`."""
        self._thread.call(self._thread.client.finish_keys)

    def grant(self, client_id: str, right: str, resource: str = "", give: bool = True) -> None:
        """As `Client.grant`."""
        self._thread.call(lambda: self._thread.client.grant(client_id, right, resource, give))

    @property
    def hq(self) -> frames.Welcome | None:
        return self._thread.client.hq

    def import_certificates(self, document: bytes) -> int:
        """As `Client.import_certificates`."""
        return self._thread.call(lambda: self._thread.client.import_certificates(document))

    def kick(self, client_id: str, connection: int = 0, reason: str = "") -> int:
        """As `Client.kick`."""
        return self._thread.call(lambda: self._thread.client.kick(client_id, connection, reason))

    def limit(self, client_id: str, what: str, most: int | None) -> None:
        """As `Client.limit`."""
        self._thread.call(lambda: self._thread.client.limit(client_id, what, most))

    @property
    def mailbox(self) -> str:
        return self._thread.client.mailbox

    def nack(
        self, delivery: Delivery, *, requeue: bool = True, outcome: int = 255, reason: str = ""
    ) -> None:
        """As `Client.nack`."""
        self._thread.call(
            lambda: self._thread.client.nack(
                delivery, requeue=requeue, outcome=outcome, reason=reason
            )
        )

    def offer_prekeys(self) -> int:
        """As `Client.offer_prekeys`."""
        return self._thread.call(self._thread.client.offer_prekeys)

    def open(self, delivery: Delivery) -> Delivery:
        """As `Client.open`."""
        return self._thread.call(lambda: self._thread.client.open(delivery))

    def ping(self) -> None:
        """As `Client.ping`."""
        self._thread.call(self._thread.client.ping)

    def process(
        self,
        handler: Handler,
        *,
        queues: list[str] | None = None,
        tries: int = 5,
        idle_s: float | None = None,
        incoming: Path | None = None,
        ordered: bool = False,
    ) -> Handlers:
        """As `Client.process`."""
        return self._thread.call(
            lambda: self._thread.client.process(
                handler,
                queues=queues,
                tries=tries,
                idle_s=idle_s,
                incoming=incoming,
                ordered=ordered,
            )
        )

    def publish(
        self,
        messages: Content | Sequence[Content],
        *,
        wait: bool = True,
        key: str | None = None,
        **keywords: Unpack[PublishKeywords],
    ) -> Confirmation:
        """As `Client.publish`."""
        return self._thread.call(
            lambda: self._thread.client.publish(messages, wait=wait, key=key, **keywords)
        )

    def publisher(
        self, *, batch: int | None = None, **keywords: Unpack[PublishKeywords]
    ) -> BlockingPublisher:
        """As `Client.publisher`."""
        return BlockingPublisher(
            self._thread, self._thread.client.publisher(batch=batch, **keywords)
        )

    def purge(self, queue: str) -> int:
        """As `Client.purge`."""
        return self._thread.call(lambda: self._thread.client.purge(queue))

    def read_log(
        self, after: int = 0, count: int = 1000, *, old: bool = False
    ) -> frames.LogEntries:
        """As `Client.read_log`."""
        return self._thread.call(lambda: self._thread.client.read_log(after, count, old=old))

    def readable_queues(self) -> list[str]:
        """As `Client.readable_queues`."""
        return self._thread.call(self._thread.client.readable_queues)

    def readers(self, exchange: str, routing_key: str) -> list[str]:
        """As `Client.readers`."""
        return self._thread.call(lambda: self._thread.client.readers(exchange, routing_key))

    def register(self) -> None:
        """As `Client.register`."""
        self._thread.call(self._thread.client.register)

    def reload(self) -> list[dict[str, Any]]:
        """As `Client.reload`."""
        return self._thread.call(self._thread.client.reload)

    def resend(
        self, queue: str | None = None, *, sender_id: str = "", envelope_id: bytes = bytes(16)
    ) -> int:
        """As `Client.resend`."""
        return self._thread.call(
            lambda: self._thread.client.resend(queue, sender_id=sender_id, envelope_id=envelope_id)
        )

    def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """As `Client.resolve`."""
        return self._thread.call(lambda: self._thread.client.resolve(exchange, routing_key))

    def revoke(self, client_id: str, reason: str = "") -> None:
        """As `Client.revoke`."""
        self._thread.call(lambda: self._thread.client.revoke(client_id, reason))

    @property
    def role(self) -> str:
        return self._thread.client.role

    def seal_again(self, client_id: str | None = None) -> tuple[int, list[CipherBoxError]]:
        """As `Client.seal_again`."""
        return self._thread.call(lambda: self._thread.client.seal_again(client_id))

    def sent(self, message: uuid.UUID | str) -> Row | None:
        """As `Client.sent`."""
        return self._thread.call(lambda: self._thread.client.sent(message))

    def set_watermark(self, watermark_ms: int = 0) -> None:
        """As `Client.set_watermark`."""
        self._thread.call(lambda: self._thread.client.set_watermark(watermark_ms))

    def settle_dead(self, queue: str, seqs: Sequence[int], *, drop: bool = False) -> int:
        """As `Client.settle_dead`."""
        return self._thread.call(lambda: self._thread.client.settle_dead(queue, seqs, drop=drop))

    def status(self, message_id: uuid.UUID | str, sender: str = "") -> frames.StatusReport:
        """As `Client.status`."""
        return self._thread.call(lambda: self._thread.client.status(message_id, sender))

    def timeline(self, message: uuid.UUID | str) -> Timeline:
        """As `Client.timeline`."""
        return self._thread.call(lambda: self._thread.client.timeline(message))

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """As `Client.unbind`."""
        self._thread.call(lambda: self._thread.client.unbind(exchange, queue, routing_key))

    def wait_for(self, envelope_ids: Sequence[bytes], what: str, within_s: float) -> bool:
        """As `Client.wait_for`."""
        return self._thread.call(lambda: self._thread.client.wait_for(envelope_ids, what, within_s))

    def list(self, what: str, name: str = "") -> list[dict[str, Any]]:
        """As `Client.list`."""
        return self._thread.call(lambda: self._thread.client.list(what, name))
