"""The client library on trio: publish, consume, receive, enrol.

The names below are imported when they are first used.

Map, written by `make generate`:

    admin              Calls of an admin's client; HQ refuses them to other clients.
    blocking           The client for programs that do not use trio: the same names, plain calls.
    blocking_calls     The calls of the blocking client; written by `make generate` from those of
                       `Client`.
    blocking_contexts  The consumer and the publisher of the blocking client.
    blocking_thread    A client in a thread of its own, for programs that know nothing of trio.
    client             The client: `open_client` and `Client`, all calls of a program behind one
                       object.
    comeback           Rejoin: `join` in a home whose client was revoked, was replaced, or whose
                       certificate expired.
    connection/        The connection to HQ: reconnected when it ends, with its window of
                       unconfirmed publishes.
    enrol              Join an HQ with a token.
    events             Progress events of a client, as lines of text in its predecessors' format.
    file_names         Make safe file names from other parties' texts; nothing else may do so.
    file_types         Content types of files by name, as laboratories use them, identical on every
                       system.
    home               The files of a client's home, created by `join` (or HQ's `init`, for the
                       first admin).
    hq_time            A client's clock, and the time that HQ shows: what a wrong clock of this
                       machine must not do.
    inbox/             Record what this home receives, exactly once, before it is acknowledged and
                       receipted.
    keys/              This client's keys and certificate, and the keys of others that it trusts.
    local_database     A client's SQLite databases: private to its user, durable at every commit,
                       upgraded in a transaction.
    log/               A client's view of the transparency log: verified heads, proofs,
                       contradictions, cosignatures.
    options            Publish options: the recipients or the route, and how messages are sealed.
    outbox/            What this home sends: kept on its disk, sent until HQ has it, kept until
                       recipients have signed.
    overview           A client's status: messages waiting here or at HQ, opened, refused or parked,
                       and the last contact with HQ.
    publishing/        From a program's messages to sealed envelopes: routes, keys, batches, files.
    receiving/         From HQ's deliveries to recorded messages: look-ups, opening, refusals,
                       receipts, handlers.
    sessions/          Sessions of this home with other clients, and their prekeys.
    suggest            Suggest the client id that was meant by an unknown one.
    topology           Calls of a client for exchanges, queues, bindings, and HQ's listings.
    watch              Watch one home for conditions that need a person, and send alerts as
                       `[alerts]` configures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cipherbox.client.client import Client, open_client
    from cipherbox.client.enrol import JoinReport, join
    from cipherbox.client.publishing.allow_list import AllowList
    from cipherbox.client.publishing.publish import Confirmation
    from cipherbox.client.publishing.publisher import Publisher
    from cipherbox.client.receiving.consumer import Consumer
    from cipherbox.client.receiving.delivery import Delivery
    from cipherbox.client.receiving.receiver import Receiver
    from cipherbox.client.sessions.secure_socket import SecureSocket, SqliteSessions
    from cipherbox.sealing.body import Message
    from cipherbox.sealing.ratchet.secure_session import (
        HandshakeBuilder,
        SecureContext,
        SecureSession,
        generate_keypair,
    )
    from cipherbox.sealing.ratchet.settings import SessionSettings

_WHERE = {
    "AllowList": "cipherbox.client.publishing.allow_list",
    "Client": "cipherbox.client.client",
    "Confirmation": "cipherbox.client.publishing.publish",
    "Consumer": "cipherbox.client.receiving.consumer",
    "Delivery": "cipherbox.client.receiving.consumer",
    "JoinReport": "cipherbox.client.enrol",
    "HandshakeBuilder": "cipherbox.sealing.ratchet.secure_session",
    "Message": "cipherbox.sealing.body",
    "Publisher": "cipherbox.client.publishing.publisher",
    "Receiver": "cipherbox.client.receiving.receiver",
    "SecureContext": "cipherbox.sealing.ratchet.secure_session",
    "SecureSession": "cipherbox.sealing.ratchet.secure_session",
    "SessionSettings": "cipherbox.sealing.ratchet.settings",
    "SecureSocket": "cipherbox.client.sessions.secure_socket",
    "SqliteSessions": "cipherbox.client.sessions.secure_socket",
    "generate_keypair": "cipherbox.sealing.ratchet.secure_session",
    "join": "cipherbox.client.enrol",
    "open_client": "cipherbox.client.client",
}

__all__ = [
    "AllowList",
    "Client",
    "Confirmation",
    "Consumer",
    "Delivery",
    "HandshakeBuilder",
    "JoinReport",
    "Message",
    "Publisher",
    "Receiver",
    "SecureContext",
    "SecureSession",
    "SecureSocket",
    "SessionSettings",
    "SqliteSessions",
    "generate_keypair",
    "join",
    "open_client",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"cipherbox.client has no {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
