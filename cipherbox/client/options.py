"""The names under which callers choose how to seal."""

from __future__ import annotations

from cipherbox.envelope.stanza_types import STANZA_NAMES, StanzaType
from cipherbox.envelope.suites import BodyCipher
from cipherbox.errors import InvalidRequest
from cipherbox.sealing.stanzas import TYPES

STANZAS = {
    STANZA_NAMES[StanzaType(kind)]: StanzaType(kind) for kind in (*TYPES, StanzaType.RATCHET)
}
CIPHERS = {"aes-256-gcm": BodyCipher.AES_256_GCM, "chacha20-poly1305": BodyCipher.CHACHA20_POLY1305}


def stanza_type(value: int | str | None) -> StanzaType | None:
    """The stanza type of this name or number; None leaves it to each recipient's preference."""
    if value is None:
        return None
    found = (
        STANZAS.get(value)
        if isinstance(value, str)
        else next((s for s in STANZAS.values() if s == value), None)
    )
    if found is None:
        raise InvalidRequest(f"a stanza is one of {', '.join(STANZAS)}, not {value!r}")
    return found


def body_cipher(value: int | str | None) -> BodyCipher:
    """The body cipher of this name or number; None is the default."""
    if value is None:
        return BodyCipher.AES_256_GCM
    found = (
        CIPHERS.get(value)
        if isinstance(value, str)
        else next((c for c in CIPHERS.values() if c == value), None)
    )
    if found is None:
        raise InvalidRequest(f"a body cipher is one of {', '.join(CIPHERS)}, not {value!r}")
    return found
