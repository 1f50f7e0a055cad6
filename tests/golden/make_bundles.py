"""Key bundles that are believed, and others with the name of the failure: `python -m
tests.golden.make bundles`.
"""

from __future__ import annotations

from typing import Any

from cipherbox import pki
from cipherbox.envelope.bundle import KeyBundle, fingerprint
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.sealing.identity import DecryptKey, Identity
from tests.golden import files
from tests.parties import Party, now_ms, party, version_1, with_other_keys, world


def main() -> None:
    lab, strong = party("FL-LAB"), party("PA-LAB", 2)
    new = Identity.generate("FL-LAB")
    second = new.make_bundle(lab.key, lab.chain, now_ms(), lab.bundle, lab.identity)
    ny = party("NY-LAB")
    old = version_1(ny)
    after_old = ny.identity.make_bundle(ny.key, ny.chain, now_ms(), old)
    key = DecryptKey.from_seed(StanzaType.HPKE_X25519, bytes(range(32)))
    rows = [
        (lab.bundle, "first"),
        (second, "second, continued"),
        (strong.bundle, "two signing keys"),
        (after_old, "after one of version 1"),
    ]
    files.write(
        "bundles",
        {
            "root": pki.der(world().root.certificate).hex(),
            "bundles": [_bundle(b, what) for b, what in rows],
            "history": [_bundle(old, "version 1")],
            "key_id": {
                "stanza_type": 2,
                "public_key": key.public.hex(),
                "key_id": key.key_id.hex(),
            },
            "fails": _bad_bundles(lab, strong, second, new, old),
        },
    )


def _bad_bundles(
    lab: Party, strong: Party, second: KeyBundle, new: Identity, old: KeyBundle
) -> list[dict[str, Any]]:
    """Asked for ``client_id``, at the time the bundle was made; ``pinned`` is the hash of the
    one pinned, if any.
    """
    raw = lab.bundle.raw
    own = len(raw) - 3 - 64  # where its own signature begins; no continuity signature follows
    certified = own - 3 - len(lab.bundle.certificate_signature)
    thief = party("MA-LAB")
    swapped = Identity.generate("FL-LAB")
    forged = swapped.make_bundle(lab.key, lab.chain, now_ms(), lab.bundle, swapped)
    zeros = DecryptKey(StanzaType.HPKE_X25519, bytes(32), bytes(32), None)
    empty = Identity("FL-LAB", bytes(32), None, [zeros]).make_bundle(lab.key, lab.chain, now_ms())
    long = Identity.generate("FL-LAB").make_bundle(lab.key, lab.chain, now_ms(), second)

    def flip(at: int, bit: int = 1) -> bytes:
        return raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]

    rows = [
        ("magic", b"X" + raw[1:], "bundle-malformed", ""),
        ("version", raw[:4] + b"\x03" + raw[5:], "bundle-malformed", ""),
        ("a flag that counts", flip(5), "bundle-malformed", ""),
        ("one byte short", raw[:-1], "bundle-malformed", ""),
        ("one byte more", raw + b"\x00", "bundle-malformed", ""),
        ("a key of small order", empty.raw, "bundle-malformed", ""),
        ("an encryption key changed", flip(120), "bundle-not-certified", ""),
        ("certificate signature changed", flip(certified + 10), "bundle-not-certified", ""),
        ("own signature changed", flip(own + 10), "bundle-not-signed", ""),
        ("no own signature", raw[: own - 3] + bytes(3) + raw[own + 64 :], "bundle-not-signed", ""),
        (
            "its signing key with other encryption keys",
            with_other_keys(lab, "none").raw,
            "bundle-not-signed",
            "",
        ),
        (
            "the same, signed by the other's signing key",
            with_other_keys(lab, "other").raw,
            "bundle-not-signed",
            "",
        ),
        (
            "two signing keys, and signed by one",
            with_other_keys(strong, "ed25519").raw,
            "bundle-not-signed",
            "",
        ),
        ("version 1", old.raw, "bundle-outdated", ""),
        ("another CA", party("FL-LAB", where="ELSEWHERE").bundle.raw, "bundle-not-certified", ""),
        ("another client", party("CA-RC").bundle.raw, "bundle-for-another", ""),
        (
            "another client's certificate",
            Identity.generate("FL-LAB").make_bundle(thief.key, thief.chain, now_ms()).raw,
            "bundle-for-another",
            "",
        ),
        ("older than pinned", raw, "bundle-rolled-back", second.hash.hex()),
        ("continued by the wrong key", forged.raw, "bundle-discontinuous", lab.bundle.hash.hex()),
        ("one missing between", long.raw, "bundle-discontinuous", lab.bundle.hash.hex()),
    ]
    asked = {"two signing keys, and signed by one": "PA-LAB", "version 1": "NY-LAB"}
    return [
        {
            "name": name,
            "error": error,
            "client_id": asked.get(name, "FL-LAB"),
            "pinned": pinned,
            "bundle": bundle.hex(),
        }
        for name, bundle, error, pinned in rows
    ]


def _bundle(bundle: KeyBundle, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "client_id": bundle.client_id,
        "sequence": bundle.sequence,
        "hash": bundle.hash.hex(),
        "fingerprint": fingerprint(bundle),
        "bundle": bundle.raw.hex(),
    }


if __name__ == "__main__":
    main()
