"""The numbers of a session.  None of them is in the bytes that travel: each end may have its
own.
"""

from __future__ import annotations

import attrs

from cipherbox.checks import checked


@checked
@attrs.frozen
class SessionSettings:
    """Frozen; the comment behind each says why it has this value."""

    # keys kept for messages that did not come yet: 72 KB of a session; the oldest go first
    max_skipped: int = 2000
    # then a fresh handshake: what was stolen before opens nothing after, quantum or not
    rotation_s: int = 86_400
    sessions_per_peer: int = 8  # those before the newest, for what is still under way
    one_time_prekeys: int = 100  # at HQ, each for one first contact: 128 KB
    signed_prekey_s: int = 7 * 86_400  # then another one is offered
    # and the old one kept so long for first contacts under way
    signed_prekey_kept_s: int = 30 * 86_400
    handshake_s: float = 30.0  # over a stream: all of the handshake
    message_bytes: int = 16 * 1024 * 1024  # over a stream: the largest message


SETTINGS = SessionSettings()
