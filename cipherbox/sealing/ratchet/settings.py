"""Settings of a session. None of them is part of the protocol: each end may have its own."""

from __future__ import annotations

import attrs

from cipherbox.checks import checked


@checked
@attrs.frozen  # complete, since `checked` reads its parameters
class SessionSettings:
    """A session's settings; the comment beside each gives the reason for its value."""

    # keys kept for skipped messages: 72 KB of a session; the oldest are dropped first
    max_skipped: int = 2000
    # then a new handshake: keys stolen before it reveal nothing after it, even to quantum computers
    rotation_s: int = 86_400
    sessions_per_peer: int = 8  # older ones for messages still in transit
    one_time_prekeys: int = 100  # at HQ, each for one first contact: 128 KB
    signed_prekey_s: int = 7 * 86_400  # then it is replaced
    # and kept for first contacts still in transit
    signed_prekey_kept_s: int = 30 * 86_400
    handshake_s: float = 30.0  # over a stream: the whole handshake
    message_bytes: int = 16 * 1024 * 1024  # over a stream: the largest message


SETTINGS = SessionSettings()
