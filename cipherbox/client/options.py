"""Publish options: the recipients or the route, and how messages are sealed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import attrs

from cipherbox.classes import frozen
from cipherbox.client.publishing.routes import BOXES, is_mailbox
from cipherbox.envelope.stanza_types import BY_NAME, StanzaType
from cipherbox.envelope.suites import BODY_CIPHERS, BodyCipher
from cipherbox.errors import InvalidRequest
from cipherbox.limits import LIMITS, check_client_id, check_name

PARTIAL = 1  # flag of SEND


def stanza_type(value: int | str | None) -> StanzaType | None:
    """Return the stanza type with this name or number; None leaves it to each recipient."""
    if value is None:
        return None
    found = (
        BY_NAME.get(value)
        if isinstance(value, str)
        else next((s for s in BY_NAME.values() if s == value), None)
    )
    if found is None:
        raise InvalidRequest(f"a stanza is one of {', '.join(BY_NAME)}, not {value!r}")
    return found


def body_cipher(value: int | str | None) -> BodyCipher:
    """Return the body cipher with this name or number; None is the default."""
    if value is None:
        return BodyCipher.AES_256_GCM
    found = (
        BODY_CIPHERS.get(value)
        if isinstance(value, str)
        else next((c for c in BODY_CIPHERS.values() if c == value), None)
    )
    if found is None:
        raise InvalidRequest(f"a body cipher is one of {', '.join(BODY_CIPHERS)}, not {value!r}")
    return found


class PublishKeywords(TypedDict, total=False):
    """The keyword arguments that every publishing call takes; see `Client.publish`."""

    to: str | Sequence[str] | None
    exchange: str
    routing_key: str
    box: str
    expires_at: int
    stanza: int | str | None
    cipher: int | str | None
    allow_mixed: bool
    partial: bool
    prompt_receipt: bool


@frozen
class PublishOptions:
    """Where a caller publishes to, and how; `Sealer.resolve_route` resolves it."""

    to: tuple[str, ...] | None
    exchange: str = ""
    routing_key: str = ""
    stanza: StanzaType | None = None
    cipher: BodyCipher = BodyCipher.AES_256_GCM
    allow_mixed: bool = False
    expires_at: int = 0
    flags: int = 0
    prompt_receipt: bool = False

    @classmethod
    def make(
        cls,
        *,
        to: str | Sequence[str] | None = None,
        exchange: str = "",
        routing_key: str = "",
        box: str = "",
        expires_at: int = 0,
        stanza: int | str | None = None,
        cipher: int | str | None = None,
        allow_mixed: bool = False,
        partial: bool = False,
        prompt_receipt: bool = False,
    ) -> PublishOptions:
        """Return the options for `PublishKeywords`; raise InvalidRequest if they contradict each
        other.
        """
        if box not in BOXES:
            raise InvalidRequest(f"a mailbox is '', 'bulk' or 'sys', not {box!r}")
        if box and (exchange or routing_key):
            raise InvalidRequest(
                "a box belongs to a recipient's mailbox; it does not go with an exchange or a key"
            )
        names = None if to is None else tuple(dict.fromkeys([to] if isinstance(to, str) else to))
        if names is not None:
            for name in names:
                check_client_id(name)
        if not names and not exchange and not routing_key:
            raise InvalidRequest(
                "say who receives it: to=[client ids], or an exchange with its routing key"
            )
        if exchange:
            check_name(exchange, "exchange name")
        if routing_key:
            check_name(routing_key, "routing key")
        return cls(
            names or None,
            exchange,
            routing_key or BOXES[box],
            stanza_type(stanza),
            body_cipher(cipher),
            allow_mixed,
            expires_at,
            PARTIAL if partial else 0,
            prompt_receipt,
        )

    @property
    def to_mailboxes(self) -> bool:
        return is_mailbox(self.exchange, self.routing_key)

    def groups(self) -> list[PublishOptions]:
        """Return these options, or several of at most 256 recipients each."""
        if self.to is None or len(self.to) <= LIMITS.recipients:
            return [self]
        if not self.to_mailboxes:
            raise InvalidRequest(f"a route takes at most {LIMITS.recipients} recipients")
        step = LIMITS.recipients
        return [attrs.evolve(self, to=self.to[i : i + step]) for i in range(0, len(self.to), step)]
