"""The client library on trio: publish, consume, receive, enrol.

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
