"""Dispatch requests: to the broker as commands, or to the parts of HQ that answer them.

`COMMANDS` turns a frame into a command; `CALLS` has the requests that are answered here: keys,
revocations, status, enrolment.  An error that is raised becomes an ERROR; the error determines
whether the connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from cipherbox import pki
from cipherbox.broker import model as m
from cipherbox.broker.model import AnyCommand, ExchangeType
from cipherbox.broker.rights import MAILBOX
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope.ids import split_message_id
from cipherbox.envelope.layout import split, stored_hashes
from cipherbox.envelope.prefix import VERSION
from cipherbox.errors import (
    EnvelopeError,
    EnvelopeRefused,
    Forbidden,
    InvalidRequest,
    NotFound,
    TokenError,
    TooLarge,
    WrongSender,
)
from cipherbox.limits import LIMITS, check_client_id
from cipherbox.server.directory.bundles import Registration
from cipherbox.server.directory.enrolment import Outcome
from cipherbox.server.requests import administration
from cipherbox.server.requests import log as logrequests
from cipherbox.server.requests.services import Handler, Requester, Services
from cipherbox.wire import frames as f
from cipherbox.wire.codec import SendItem
from cipherbox.wire.token import secret_hash

PARTIAL = 1
_AS_SET, _MOST = (1 << 64) - 1, (1 << 63) - 1
_IDS = LIMITS.names_per_frame


def incoming(item: SendItem, client: str, envelope_bytes: int) -> m.Incoming:
    """Return a SEND as the broker's input; raise EnvelopeRefused, TooLarge or WrongSender."""
    correlation, flags, route_version, raw = item
    if len(raw) > envelope_bytes:
        raise TooLarge(f"the envelope has {len(raw)} bytes; HQ accepts at most {envelope_bytes}")
    try:
        layout = split(raw)
    except EnvelopeError as error:
        raise EnvelopeRefused(str(error)) from None
    (
        _,
        _,
        sealed_at,
        expires_at,
        envelope_id,
        generation,
        count,
        _,
        _,
        _,
        _,
        commitment,
        version,
        _,
        sender,
        exchange,
        routing_key,
        _,
        readers,
        _,
    ) = layout.prefix
    if version != VERSION:
        raise EnvelopeRefused(
            f"the envelope has version {version}; this HQ accepts only version {VERSION}"
        )
    if sender != client:
        raise WrongSender(f"the envelope's sender is {sender}, but this connection is {client}'s")
    envelope_hash, stored_hash = stored_hashes(raw, layout)
    return tuple.__new__(
        m.Incoming,
        (
            correlation,
            bool(flags & PARTIAL),
            route_version,
            sender,
            envelope_id,
            generation,
            count,
            envelope_hash,
            stored_hash,
            exchange,
            routing_key,
            readers,
            sealed_at,
            expires_at,
            len(raw),
            raw,
            commitment,
        ),
    )


def _exchange_type(value: int) -> ExchangeType:
    try:
        return ExchangeType(value)
    except ValueError:
        raise InvalidRequest(f"invalid exchange type {value}: must be 0, 1 or 2") from None


def _many(count: int, what: str, most: int) -> None:
    if count > most:
        raise InvalidRequest(f"too many {what} in one request: {count}, at most {most}")


def _ack(n: int, c: str, x: f.Ack) -> m.Ack:
    _many(len(x.ranges), "ranges", LIMITS.ranges_per_frame)
    ranges = [(r.first, r.count) for r in x.ranges]
    _many(sum(count for _, count in ranges), "envelopes", LIMITS.ack_entries)
    return m.Ack(n, c, x.correlation, x.queue, ranges)


def _lists(x: f.TellContacts) -> ContactLists:
    _many(len(x.allowed) + len(x.blocked), "contacts", _IDS)
    allowed, blocked = (
        tuple(sorted({check_client_id(name) for name in names})) for names in (x.allowed, x.blocked)
    )
    return ContactLists(allowed, blocked)


# frame -> command; (connection, client, frame)
COMMANDS: dict[type, Callable[[int, str, Any], AnyCommand]] = {
    f.Consume: lambda n, c, x: m.Consume(n, c, x.correlation, x.tag, x.queue, x.envelopes, x.size),
    f.Cancel: lambda n, c, x: m.Cancel(n, c, x.correlation, x.tag),
    f.Credit: lambda n, c, x: m.Credit(n, x.tag, x.envelopes, x.size),
    f.Fetch: lambda n, c, x: m.Fetch(n, c, x.correlation, x.queue, x.envelopes, x.size),
    f.Ack: _ack,
    f.Nack: lambda n, c, x: m.Nack(
        n, c, x.correlation, x.queue, x.seq, x.requeue, x.outcome, x.reason[:500]
    ),
    f.Resend: lambda n, c, x: m.Resend(n, c, x.correlation, x.queue, x.sender_id, x.envelope_id),
    f.Resolve: lambda n, c, x: m.Resolve(n, c, x.correlation, x.exchange, x.routing_key),
    f.DeclareExchange: lambda n, c, x: m.DeclareExchange(
        n, c, x.correlation, x.name, _exchange_type(x.type)
    ),
    f.DeleteExchange: lambda n, c, x: m.DeleteExchange(n, c, x.correlation, x.name),
    f.DeclareQueue: lambda n, c, x: m.DeclareQueue(
        n, c, x.correlation, x.name, x.owner, tuple(x.readers), x.ttl_s, x.max_length
    ),
    f.SettleDead: lambda n, c, x: m.RedriveOrDiscard(
        n, c, x.correlation, x.queue, [(r.first, r.count) for r in x.ranges], x.drop
    ),
    f.DeleteQueue: lambda n, c, x: m.DeleteQueue(n, c, x.correlation, x.name),
    f.Bind: lambda n, c, x: m.Bind(n, c, x.correlation, x.exchange, x.queue, x.routing_key),
    f.Unbind: lambda n, c, x: m.Unbind(n, c, x.correlation, x.exchange, x.queue, x.routing_key),
    f.Purge: lambda n, c, x: m.Purge(n, c, x.correlation, x.queue),
    f.LimitClient: lambda n, c, x: m.LimitClient(
        n, c, x.correlation, x.client_id, x.what, -1 if x.most == _AS_SET else min(x.most, _MOST)
    ),
    f.TellContacts: lambda n, c, x: m.TellContacts(n, c, x.correlation, _lists(x)),
    f.Grant: lambda n, c, x: m.Grant(n, c, x.correlation, x.client_id, x.right, x.resource, x.give),
}


async def _register(hq: Services, s: Requester, x: f.Register) -> object:
    hq.key_requests.spend(s.client)
    # a replaced home must not publish keys after its successor was enrolled
    async with hq.enrolments.lock:
        hq.trust.require(s.serial)
        found = await hq.directory.register(s.client, x.bundle)
    duplicate = found is Registration.DUPLICATE
    s.log("Key bundle was already registered" if duplicate else "Key bundle registered")
    if found is Registration.RESTARTED:
        number = await hq.engine.in_store(hq.trust.crl_number)
        hq.connections.notify_revoked(
            f"{s.client} was enrolled again and has new keys, which its previous ones did not "
            f"sign; if you pinned it, compare: cipherbox keys verify {s.client}",
            number,
        )
    return f.Ok(x.correlation, int(not duplicate))


async def _get_bundles(hq: Services, s: Requester, x: f.GetBundles) -> object:
    _many(len(x.clients) + len(x.hashes), "clients", _IDS)
    hq.key_requests.spend(s.client)
    answers, proofs = await hq.directory.answers(x, hq.config.limits.frame_bytes // 2)
    return f.Bundles(x.correlation, answers, proofs)


async def _offer_prekeys(hq: Services, s: Requester, x: f.OfferPrekeys) -> object:
    hq.key_requests.spend(s.client)
    hq.trust.require(s.serial)
    return f.Ok(
        x.correlation, await hq.prekeys.offer(s.client, x.signed, x.once, replace=x.replace)
    )


async def _get_prekeys(hq: Services, s: Requester, x: f.GetPrekeys) -> object:
    _many(len(x.clients), "clients", LIMITS.recipients)
    hq.prekey_requests.spend(s.client, max(1, len(x.clients)))
    return f.Prekeys(x.correlation, [await hq.prekeys.take(s.client, name) for name in x.clients])


async def _get_revocations(hq: Services, s: Requester, x: f.GetRevocations) -> object:
    return f.Revocations(x.correlation, await hq.engine.in_store(hq.trust.crl))


async def _status(hq: Services, s: Requester, x: f.Status) -> object:
    """Unknown messages, those of others, and indexes that the envelope lacks look the same."""
    from uuid import UUID

    envelope_id, index = split_message_id(UUID(bytes=x.message_id))
    sender = x.sender_id or s.client
    report = await hq.engine.in_store(hq.store.trace, sender, envelope_id)
    traces = list(report.traces) if report else []
    if not (sender == s.client or hq.admission.is_admin(s.client)):
        traces = [t for t in traces if s.client in t.readers]
    if report is None or not traces or index >= report.messages:
        return f.StatusReport(x.correlation, False, sender, 0, [])
    rows = [
        f.Trace(
            t.queue,
            t.client,
            int(t.state),
            min(t.attempts, 0xFFFF),
            t.delivered_at,
            t.acknowledged_at,
            t.reason,
        )
        for t in traces
    ]
    return f.StatusReport(x.correlation, True, report.sender, report.accepted_at, rows)


async def _list(hq: Services, s: Requester, x: f.List) -> object | None:
    """Answer HQ's own lists; the broker answers the others."""
    make = administration.LISTS.get(x.what)
    if make is None:
        await s.ask(m.List(s.connection, s.client, x.correlation, x.what, x.name, x.after))
        return None
    s.need_admin()
    rows = [r for r in await make(hq) if x.name in ("", r["name"])]
    return f.Listing(x.correlation, "", orjson.dumps(rows))


async def _list_dead(hq: Services, s: Requester, x: f.ListDead) -> object:
    """List one queue's dead letters for its readers and owner, or all for admins.  Queues of others
    and queues that do not exist look the same.
    """
    broker = hq.engine.broker
    queue = broker.state.queues.get(x.queue)
    if not hq.admission.is_admin(s.client) and (queue is None or not queue.is_reader(s.client)):
        if not x.queue:
            raise Forbidden(
                "only an admin may list the dead letters of all queues",
                remedy=f"name one of your queues, for example {MAILBOX}{s.client}",
            )
        raise NotFound(f"no queue {x.queue!r} with dead letters that you may see")
    rows, after = await hq.engine.in_store(hq.store.dead_letters, x.queue, x.after, _IDS, x.settled)
    # a deleted queue may have left some
    if x.queue and queue is None and not rows and not x.after:
        raise NotFound(f"no queue {x.queue!r}", remedy="see: cipherbox queue list")
    return f.Listing(x.correlation, after, orjson.dumps(rows))


async def _get_root(hq: Services, s: Requester, x: f.GetRoot) -> object:
    return f.Root(x.correlation, pki.der(hq.trust.root), pki.der(hq.trust.issuing))


def _certificate(correlation: int, outcome: Outcome) -> f.Certificate:
    return f.Certificate(correlation, outcome.state, outcome.number, list(outcome.chain))


async def _request_certificate(hq: Services, s: Requester, x: f.RequestCertificate) -> object:
    """Enrol; attempts are counted per token, or per address if the secret is unknown."""
    known = await hq.enrolments.known(x.client_id, x.secret)
    hq.enrol_attempts.spend(
        f"token {secret_hash(x.secret).hex()}" if known else f"address {s.address}"
    )
    if not known:
        raise TokenError("HQ does not know this token", remedy="ask the admin for a new one")
    return _certificate(x.correlation, await hq.enrolments.request(x.client_id, x.secret, x.csr))


async def _renew(hq: Services, s: Requester, x: f.Renew) -> object:
    hq.key_requests.spend(s.client)
    return _certificate(x.correlation, await hq.enrolments.renew(s.client, x.csr, s.serial))


async def _enrol(hq: Services, s: Requester, x: f.Enrol) -> object:
    s.need_admin()
    text = await hq.enrolments.token(
        x.client_id,
        x.role or m.CLIENT,
        approve=x.approve,
        valid_s=x.valid_s,
        replaces=x.replaces,
        by=s.client,
    )
    s.log("Enrolment token made", target=x.client_id, replaces=x.replaces)
    return f.Token(x.correlation, text)


async def _approve(hq: Services, s: Requester, x: f.Approve) -> object:
    s.need_admin()
    return f.Ok(x.correlation, await hq.enrolments.approve(x.client_id, accept=x.accept))


async def _revoke(hq: Services, s: Requester, x: f.Revoke) -> object:
    s.need_admin()
    count = await hq.enrolments.revoke(x.client_id, x.reason[:500], by=s.client)
    number = await hq.engine.in_store(hq.trust.crl_number)
    hq.connections.notify_revoked(
        f"{x.client_id} was revoked; nothing is sealed to it any more", number
    )
    return f.Ok(x.correlation, count)


async def _export(hq: Services, s: Requester, x: f.ExportRequests) -> object:
    s.need_admin()
    return f.Requests(x.correlation, await hq.ca_exchange.export())


async def _import(hq: Services, s: Requester, x: f.ImportCertificates) -> object:
    s.need_admin()
    return f.Ok(x.correlation, await hq.ca_exchange.take(x.document))


CALLS: dict[type, Handler] = {
    f.Register: _register,
    f.GetBundles: _get_bundles,
    f.OfferPrekeys: _offer_prekeys,
    f.GetPrekeys: _get_prekeys,
    f.GetRevocations: _get_revocations,
    f.Status: _status,
    f.List: _list,
    f.GetRoot: _get_root,
    f.RequestCertificate: _request_certificate,
    f.Renew: _renew,
    f.Enrol: _enrol,
    f.Approve: _approve,
    f.Revoke: _revoke,
    f.ListDead: _list_dead,
    f.ExportRequests: _export,
    f.ImportCertificates: _import,
    **administration.CALLS,
    **logrequests.CALLS,
}


class Requests:
    """The requests of clients: turned into commands for the broker, or answered here."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def command(self, connection: int, client: str, frame: Any) -> AnyCommand | None:
        """Return the broker command of a frame; None if it is answered here."""
        make = COMMANDS.get(type(frame))
        return make(connection, client, frame) if make is not None else None

    async def answer(self, requester: Requester, frame: Any) -> object | None:
        """Answer a frame; return None if the engine answers it."""
        return await CALLS[type(frame)](self._services, requester, frame)
