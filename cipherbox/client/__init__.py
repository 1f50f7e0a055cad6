"""The client library on trio: publish, consume, receive, enrol.

    api        open_client, Client: everything below behind one object        admin, topology: its less used calls
    line       the lasting connection to HQ: one `link` after another         link: one connection
    window     what was sent and is not yet confirmed                        post: outbox before it, outcomes after it
    outbox     what was sealed, on disk (outbox_rows, _reading, _signed)     localdb: small durable databases
    publish    who receives, which keys, seal, wait for the confirm           publisher: the same in batches
    consume    deliveries of a queue                                         opening: verify and open them
    directory  other parties' bundles, from disk or HQ                       pins: what this machine believes of them
    allow      whom this sender permits behind an exchange                   revocations: the CA's list
    routes     what HQ last said about routes
    receiver   the inbox: each message once into received_messages.jsonl     inbox: its transaction
    handler    a program's function once for each message                    lines: the readable lines
    owed       receipts this client signs                                    receipts: those it takes in
    files      sends files in parts (parts, transfers)                       arriving: takes them in
    agent      folder to folder                                              tracking: where is my message?
    enrol      join an HQ with a token                                       home: the files of a client
    keylife    renew, rotate, destroy this client's keys                      log/: HQ's log, proven
    localkey   what a home's keys are encrypted under, and its password       blocking: for scripts without trio
    sessions   this home's: chains says, hearing hears (sessionkeys)         prekeys: kept up at HQ, fetched from it
    resealing  what cannot be opened as it is, sealed again                  oldsessions: those of versions before 0.5
    contents   what may be a message, and how many fit                       securesocket: sessions without HQ
    events     the lines a client says while it works                        tasks: background tasks with plain errors

The names below are imported when they are first used.
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
    from cipherbox.client.receiving.consumer import Consumer, Delivery
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
