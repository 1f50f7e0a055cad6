"""Prekeys, handshakes with and without a one-time part, messages both ways out of order, an
envelope in a session.
"""

from __future__ import annotations

import os
from typing import Any

from cipherbox.envelope import layout as layouts
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.sealing.body import Message, pack
from cipherbox.sealing.open import open_envelope, parse_envelope
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.double_ratchet import public
from cipherbox.sealing.ratchet.handshake import Secrets
from cipherbox.sealing.ratchet.prekeys import (
    Pair,
    offer,
    offer_once,
    session_key_id,
    verified_prekeys,
)
from cipherbox.sealing.ratchet.session import Session
from cipherbox.sealing.seal import seal
from tests.golden import files
from tests.parties import Party, now_ms, party

BINDING = b"a place in an envelope"


def flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


class Talker:
    """One end, which notes what it says and every private ratchet key it had."""

    def __init__(self, name: str, state: Session) -> None:
        self.name, self.state = name, state
        self.keys = [state.state.own]

    def say(self, text: bytes) -> dict[str, Any]:
        self.state, raw = session.seal(self.state, text, BINDING)
        return {"by": self.name, "plaintext": text.hex(), "message": raw.hex()}

    def hear(self, row: dict[str, Any]) -> None:
        parsed = session.parse(bytes.fromhex(row["message"]))
        self.state, plain = session.decrypt(self.state, parsed, BINDING)
        assert plain.hex() == row["plaintext"]
        if self.state.state.own not in self.keys:
            self.keys.append(self.state.state.own)


def conversation(
    center: Party, own: bytes, identity: bytes, signed: Pair, once: Pair | None
) -> dict[str, Any]:
    raw_signed = offer(center.identity, identity, 3, signed, now_ms())
    raw_once = offer_once(center.identity, identity, 8, once) if once else b""
    prekeys = verified_prekeys("CA-RC", center.bundle.sign_keys, raw_signed, raw_once)
    parties = handshake.parties("FL-LAB", "CA-RC")
    shaken, agreed = handshake.begin(own, prekeys, now_ms(), parties)
    a = Talker("FL-LAB", session.started(shaken, agreed, prekeys, now_ms()))
    said = [a.say(b"first"), a.say(b"second")]
    kem, one = (once.kem, once.dh) if once else (signed.kem, b"")
    assert handshake.answer(Secrets(identity, signed.dh, kem, one), shaken, parties) == agreed
    b = Talker("CA-RC", session.answered(shaken, agreed, signed.dh, now_ms()))
    b.hear(said[1])  # out of order
    b.hear(said[0])
    said.append(b.say(b"an answer"))
    a.hear(said[2])
    said += [a.say(b"third"), a.say(b"lost"), a.say(b"fifth")]
    b.hear(said[5])
    said.append(b.say(b""))
    a.hear(said[6])
    return {
        "signed": raw_signed.hex(),
        "once": raw_once.hex(),
        "handshake": shaken.encode().hex(),
        "root": agreed.root.hex(),
        "associated": agreed.associated.hex(),
        "session_id": agreed.session_id.hex(),
        "secrets": {
            "identity_a": own.hex(),
            "identity_b": identity.hex(),
            "signed": signed.encode().hex(),
            "once": once.encode().hex() if once else "",
            "ratchet": {t.name: [k.hex() for k in t.keys] for t in (a, b)},
        },
        "binding": BINDING.hex(),
        "said": said,
    }


class _SendingChain:
    def __init__(self, state: Session) -> None:
        self.state = state
        self.key_id, self.stanza_bytes = session_key_id(state.peer_identity), state.size(32)

    def wrap(self, content_key: bytes, binding: bytes) -> bytes:
        return session.seal(self.state, content_key, binding)[1]


def envelope(
    lab: Party, center: Party, own: bytes, identity: bytes, signed: Pair, once: Pair
) -> dict[str, Any]:
    """A first contact, opened by the private keys of `conversation`."""
    prekeys = verified_prekeys(
        "CA-RC",
        center.bundle.sign_keys,
        offer(center.identity, identity, 3, signed, 1),
        offer_once(center.identity, identity, 8, once),
    )
    parties = handshake.parties("FL-LAB", "CA-RC")
    shaken, agreed = handshake.begin(own, prekeys, now_ms(), parties)
    sending_chain = _SendingChain(session.started(shaken, agreed, prekeys, 1))
    message = Message(b"Sample 17 is ready")
    raw = seal(
        lab.identity,
        [center.bundle],
        pack([message]),
        1,
        envelope_id=EnvelopeIds(now_ms).next(),
        sealed_at=now_ms(),
        sending_chains=[sending_chain],
    ).raw

    def in_session(_: bytes, stanza: bytes, binding: bytes) -> bytes:
        found = session.answered(shaken, agreed, signed.dh, 1)
        return session.decrypt(found, session.parse(stanza), binding)[1]

    assert (
        open_envelope(parse_envelope(raw), center.identity, lab.bundle, in_session)[0].content
        == message.content
    )
    return {
        "envelope": raw.hex(),
        "content": message.content.hex(),
        "sender_bundle": lab.bundle.raw.hex(),
        "stanza": layouts.stanza(raw, layouts.split(raw), 0).hex(),
    }


def failing(center: Party, identity: bytes, signed: Pair, once: Pair) -> list[dict[str, str]]:
    """Prekeys that must not be believed of CA-RC, with the name of the failure."""
    good, one = (
        offer(center.identity, identity, 3, signed, 1),
        offer_once(center.identity, identity, 8, once),
    )
    other = party("NY-RC").identity
    rows = [
        ("signed", "magic", b"X" + good[1:], "bundle-malformed"),
        ("signed", "version", flip(good, 4), "bundle-malformed"),
        ("signed", "one byte short", good[:-1], "bundle-malformed"),
        ("signed", "one byte more", good + b"\0", "bundle-malformed"),
        ("signed", "another client's", offer(other, identity, 3, signed, 1), "bundle-for-another"),
        ("signed", "identity key changed", flip(good, 25), "bundle-not-certified"),
        ("signed", "prekey changed", flip(good, 60), "bundle-not-certified"),
        ("signed", "last-resort key changed", flip(good, 300), "bundle-not-certified"),
        ("signed", "signature changed", flip(good, len(good) - 1), "bundle-not-certified"),
        ("signed", "a one-time part", one, "bundle-malformed"),
        ("once", "number 0", offer_once(center.identity, identity, 0, once), "bundle-malformed"),
        ("once", "another client's", offer_once(other, identity, 8, once), "bundle-for-another"),
        ("once", "key changed", flip(one, 60), "bundle-not-certified"),
        ("once", "a signed part", good, "bundle-malformed"),
    ]
    return [
        {"part": part, "name": name, "prekeys": raw.hex(), "error": error}
        for part, name, raw, error in rows
    ]


def main() -> None:
    lab, center = party("FL-LAB"), party("CA-RC")
    own, identity, signed, once = os.urandom(32), os.urandom(32), Pair.generate(), Pair.generate()
    files.write(
        "sessions",
        {
            "bundle": center.bundle.raw.hex(),
            "identity_b_public": public(identity).hex(),
            "conversations": {
                "one-time": conversation(center, own, identity, signed, once),
                "last resort": conversation(center, own, identity, signed, None),
            },
            "envelope": envelope(lab, center, own, identity, signed, once),
            "fails": failing(center, identity, signed, once),
        },
    )


if __name__ == "__main__":
    main()
