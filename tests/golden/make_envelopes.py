"""Sealed samples with the keys that open them, damaged ones with the failure's name, receipts."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from unittest import mock

from cipherbox.envelope import layout as layouts
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import receipt as receipts
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.suites import BodyCipher
from cipherbox.sealing import seal as seal_module
from cipherbox.sealing import stanzas
from cipherbox.sealing.body import Message, pack
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.open import content_key, parse_envelope
from cipherbox.sealing.primitives import aead, derive
from cipherbox.sealing.seal import SIGNATURE_USE, choose_keys, seal
from tests.golden import files
from tests.parties import Party, now_ms, party

MESSAGES = [
    Message(b"plain bytes"),
    Message(
        b"Zeitstempel",
        "text/plain; charset=utf-8",
        {"filename": "a.txt", "größe": "11"},
        1_700_000_000_123,
    ),
    Message(b"", "application/json"),
]


def keys_of(identity: Identity) -> list[list[Any]]:
    return [[k.algorithm, k.seed.hex()] for k in identity.current]


def sealed(
    sender: Party,
    to: list[Party],
    messages: list[Message],
    *,
    stanza: int = 1,
    cipher: int = 1,
    **more: Any,
) -> bytes:
    bundles = [p.bundle for p in to]
    return seal(
        sender.identity,
        bundles,
        pack(messages),
        len(messages),
        envelope_id=EnvelopeIds(now_ms).next(),
        sealed_at=now_ms(),
        cipher=BodyCipher(cipher),
        keys=choose_keys(bundles, stanza=stanza),
        **more,
    ).raw


def opened_row(
    name: str, raw: bytes, sender: Party, messages: list[Message], recipient: Party | None = None
) -> dict[str, Any]:
    """An envelope, what it holds, and every value on the way, so that another program finds its
    first wrong step.
    """
    at = layouts.split(raw)
    hashes = layouts.hashes(raw, at)
    key = content_key(
        parse_envelope(raw), (recipient or party(at.prefix.recipients[0].client_id)).identity
    )
    keys = derive(key)
    plain = aead(at.prefix.body_cipher, keys.body_key).decrypt(
        keys.nonce, raw[at.body_at : at.signatures_at], hashes.header_hash
    )
    return {
        "name": name,
        "sender_bundle": sender.bundle.hash.hex(),
        "envelope": raw.hex(),
        "prefix_hash": hashlib.sha256(raw[: at.stanzas_at]).hexdigest(),
        "header_hash": hashes.header_hash.hex(),
        "envelope_hash": hashes.envelope_hash.hex(),
        "stored_hash": hashes.stored_hash.hex(),
        "content_key": key.hex(),
        "body_key": keys.body_key.hex(),
        "body_nonce": keys.nonce.hex(),
        "plaintext_commitment": at.prefix.plain_commitment.hex(),
        "body": plain.hex(),
        "messages": files.plain(messages),
    }


def resigned(raw: bytes, sender: Identity) -> bytes:
    """Changed bytes under a fresh, valid signature: what a dishonest sender can make."""
    at = layouts.split(raw)
    digest = hashlib.sha256(raw[: at.signatures_at]).digest()
    return raw[: at.signatures_at] + sender.sign(SIGNATURE_USE, digest)


def stripped(raw: bytes, sender: Identity) -> bytes:
    """An envelope of suite 2 made one of suite 1, with an Ed25519 signature that is right."""
    short = raw[:55] + b"\x01" + raw[56:-3309]
    return resigned(short, Identity(sender.client_id, sender.seeds()[0], None, sender.current))


def dishonest(sender: Party, to: Party) -> list[tuple[str, bytes, str]]:
    """As `damaged`, and signed by the sender: these fail only behind the signature."""
    raw = sealed(sender, [to], MESSAGES)
    at = layouts.split(raw)
    entry = at.prefix.recipients[0]
    public = to.bundle.encrypt_keys[0].public
    prefix_hash = hashlib.sha256(raw[: at.stanzas_at]).digest()
    other = stanzas.wrap(entry.stanza_type, public, bytes(range(32)), prefix_hash, 0)

    def flip(offset: int) -> bytes:
        return resigned(
            raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :], sender.identity
        )

    def body(plain: bytes) -> bytes:
        return seal(
            sender.identity,
            [to.bundle],
            plain,
            1,
            envelope_id=EnvelopeIds(now_ms).next(),
            sealed_at=now_ms(),
        ).raw

    def lied(plain: bytes, *more: Any) -> bytes:
        return lying(sender, to, plain, *more)

    salt = bytes(range(32))
    one = bytes.fromhex("0200 00000001") + salt + bytes.fromhex("00000001 00") + b"x"
    twice = (
        bytes.fromhex("0204 00000001")
        + salt
        + bytes.fromhex("00000001 00 0009 02 01610000 01610000")
        + b"x"
    )
    return [
        ("signed: key id", flip(158 + len(at.prefix.sender)), "key-missing"),
        ("signed: generation", flip(49), "decryption-failed"),
        ("signed: stanza", flip(at.stanzas_at), "decryption-failed"),
        ("signed: body", flip(at.body_at), "decryption-failed"),
        ("signed: tag", flip(at.signatures_at - 1), "decryption-failed"),
        (
            "signed: other content key",
            resigned(raw[: at.stanzas_at] + other + raw[at.body_at :], sender.identity),
            "commitment-mismatch",
        ),
        ("signed: body layout 3", lied(b"\x03" + one[1:]), "malformed-envelope"),
        ("signed: body layout 1", lied(b"\x01" + one[1:6] + one[38:]), "malformed-envelope"),
        ("signed: another plaintext", lied(one, one[:-1] + b"y"), "plaintext-mismatch"),
        ("signed: another time", lied(one, one, 1), "plaintext-mismatch"),
        ("signed: plaintext commitment", flip(121), "decryption-failed"),
        ("signed: body flag 8", body(one[:1] + b"\x08" + one[2:]), "malformed-envelope"),
        ("signed: body one byte more", body(one + b"x"), "malformed-envelope"),
        ("signed: body one byte short", body(one[:-1]), "malformed-envelope"),
        ("signed: header twice", body(twice), "malformed-envelope"),
        ("signed: text not UTF-8", body(one[:42] + b"\x01\xff" + b"x"), "malformed-envelope"),
    ]


def lying(
    sender: Party, to: Party, plain: bytes, committed: bytes | None = None, later: int = 0
) -> bytes:
    """An envelope of this plaintext that commits to another one, or to another time."""
    right = seal_module.commit_to
    wrong = plain if committed is None else committed
    with (
        mock.patch.object(seal_module, "commit_to", lambda _, at: right(wrong, at + later)),
        mock.patch.object(seal_module, "LAYOUT", plain[0]),
    ):
        return seal(
            sender.identity,
            [to.bundle],
            plain,
            1,
            envelope_id=EnvelopeIds(now_ms).next(),
            sealed_at=now_ms(),
        ).raw


def damaged(raw: bytes) -> list[tuple[str, bytes, str]]:
    """(what, bytes, name of the failure) for each part."""
    at = layouts.split(raw)

    def flip(offset: int) -> bytes:
        return raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]

    return [
        ("magic", flip(0), "malformed-envelope"),
        ("version", flip(4), "unknown-version"),
        ("a critical flag", raw[:5] + b"\x10" + raw[6:], "unknown-version"),
        ("a flag that may be passed over", flip(5), "signature-invalid"),
        ("hash suite 2", raw[:56] + b"\x02" + raw[57:], "unknown-version"),
        ("generation", flip(49), "signature-invalid"),
        ("body cipher 3", raw[:54] + b"\x03" + raw[55:], "unknown-version"),
        ("signature suite", raw[:55] + b"\x02" + raw[56:], "malformed-envelope"),
        ("bundle hash", flip(57), "signature-invalid"),
        ("commitment", flip(89), "signature-invalid"),
        ("plaintext commitment", flip(121), "signature-invalid"),
        ("stanza", flip(at.stanzas_at), "signature-invalid"),
        ("body", flip(at.body_at), "signature-invalid"),
        ("signature", flip(at.signatures_at), "signature-invalid"),
        ("one byte short", raw[:-1], "malformed-envelope"),
        ("one byte more", raw + b"\x00", "malformed-envelope"),
        ("empty", b"", "malformed-envelope"),
    ]


def main() -> None:
    lab, _, ca = write_envelopes()
    write_receipts(ca, lab, sealed(lab, [ca], MESSAGES))


def write_envelopes() -> tuple[Party, Party, Party]:
    lab, strong, ca, ny = party("FL-LAB"), party("PA-LAB", 2), party("CA-RC"), party("NY-RC")
    rows = [
        opened_row("one recipient", raw := sealed(lab, [ca], MESSAGES), lab, MESSAGES),
        opened_row("classical", sealed(lab, [ca], MESSAGES, stanza=2), lab, MESSAGES),
        opened_row("chacha20-poly1305", sealed(lab, [ca], MESSAGES, cipher=2), lab, MESSAGES),
        opened_row("two recipients", sealed(lab, [ca, ny], MESSAGES[:1]), lab, MESSAGES[:1]),
        opened_row("two signatures", sealed(strong, [ca], MESSAGES), strong, MESSAGES),
        opened_row(
            "route, expiry, generation",
            sealed(
                lab,
                [ca],
                MESSAGES[:1],
                exchange="labs",
                routing_key="fl.dat",
                generation=3,
                expires_at=now_ms() + 10**9,
            ),
            lab,
            MESSAGES[:1],
        ),
        opened_row(
            "prompt receipt",
            sealed(lab, [ca], MESSAGES[:1], prompt_receipt=True),
            lab,
            MESSAGES[:1],
        ),
    ]
    bad = [_failed(lab, *row) for row in [*damaged(raw), *dishonest(lab, ca)]]
    bad.append(_failed(lab, "for another", sealed(lab, [ny], MESSAGES), "not-recipient"))
    bad.append(
        _failed(
            strong,
            "stripped",
            stripped(sealed(strong, [ca], MESSAGES), strong.identity),
            "signature-invalid",
        )
    )
    bad.append(_failed(strong, "another sender's bundle", raw, "signature-invalid"))
    files.write(
        "envelopes",
        {
            "recipients": {p.identity.client_id: keys_of(p.identity) for p in (ca, ny)},
            "bundles": {p.bundle.hash.hex(): p.bundle.raw.hex() for p in (lab, strong)},
            "opens": rows,
            "fails": bad,
        },
    )
    return lab, strong, ca


def _failed(sender: Party, what: str, raw: bytes, error: str) -> dict[str, Any]:
    return {
        "name": what,
        "error": error,
        "recipient": "CA-RC",
        "sender_bundle": sender.bundle.hash.hex(),
        "envelope": raw.hex(),
    }


def write_receipts(recipient: Party, sender: Party, raw: bytes) -> None:
    at = layouts.split(raw)
    first = receipts.Leaf(
        sender.identity.client_id,
        at.prefix.envelope_id,
        0,
        layouts.hashes(raw, at).envelope_hash,
        now_ms(),
        Outcome.OPENED,
        commitment=bytes(range(32)),
        log_entry=7,
    )
    note = json.loads((files.HERE / "log.json").read_text())["entries"][-1]["checkpoint"]
    outcomes = (Outcome.OPENED, Outcome.HANDLER_FAILED)
    second = receipts.Leaf("PA-LAB", bytes(16), 1, bytes(32), 5, Outcome.OTHER, outcomes)
    leaves = [first, second, first]
    hashed = [tree.leaf_hash(leaf.encode()) for leaf in leaves]
    root = tree.merkle_root(hashed)
    suite = int(recipient.identity.suite)
    parts = (
        recipient.identity.client_id,
        now_ms(),
        recipient.bundle.hash,
        root,
        len(leaves),
        suite,
    )
    unsigned = receipts.encode_unsigned(*parts, note.encode())
    signed = recipient.identity.sign(receipts.USE, hashlib.sha256(unsigned).digest())
    receipt = receipts.Receipt(*parts, signed, note.encode())
    rows = []
    for i, leaf in enumerate(leaves):
        exported = receipts.Exported(receipt, leaf, i, tree.merkle_path(hashed, i))
        rows.append(
            {
                "index": i,
                "leaf": leaf.encode().hex(),
                "exported": receipts.encode_exported(exported).hex(),
            }
        )
    files.write(
        "receipts",
        {
            "bundle": recipient.bundle.raw.hex(),
            "root": root.hex(),
            "checkpoint": note,
            "exported": rows,
        },
    )


if __name__ == "__main__":
    main()
