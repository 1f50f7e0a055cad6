"""Key bundles: golden files, totality, certification, succession."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cipherbox import pki
from cipherbox.envelope import bundle as bundles
from cipherbox.envelope.labels import label
from cipherbox.envelope.stanza_types import key_id
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleExpired,
    BundleForAnother,
    BundleMalformed,
    BundleNotCertified,
    BundleNotSigned,
    BundleOutdated,
    BundleRolledBack,
)
from cipherbox.sealing.identity import DecryptKey, Identity
from tests import soak
from tests.golden import files
from tests.parties import now_ms, party, version_1, with_other_keys, world

GOLDEN = files.read("bundles")


@pytest.mark.parametrize("row", GOLDEN["bundles"], ids=lambda r: r["name"])
def test_golden_bundles(row: dict[str, str]) -> None:
    bundle = bundles.decode_bundle(bytes.fromhex(row["bundle"]))
    root = x509.load_der_x509_certificate(bytes.fromhex(GOLDEN["root"]))
    bundles.check_bundle(bundle, row["client_id"], root, bundle.created_at)
    assert bundle.hash.hex() == row["hash"]
    assert bundle.sequence == row["sequence"]
    assert bundles.fingerprint(bundle) == row["fingerprint"]


@pytest.mark.parametrize("row", GOLDEN["fails"], ids=lambda r: r["name"])
def test_golden_bundles_that_are_not_believed(row: dict[str, str]) -> None:
    root = x509.load_der_x509_certificate(bytes.fromhex(GOLDEN["root"]))
    known = {r["hash"]: bytes.fromhex(r["bundle"]) for r in GOLDEN["bundles"]}

    def believe() -> None:
        bundle = bundles.decode_bundle(bytes.fromhex(row["bundle"]))
        bundles.check_bundle(bundle, row["client_id"], root, bundle.created_at)
        if row["pinned"]:
            bundles.check_succession(bundles.decode_bundle(known[row["pinned"]]), [bundle])

    with pytest.raises(BundleError) as found:
        believe()
    assert found.value.name == row["error"]


def test_golden_succession_and_key_id() -> None:
    first, second, _, upgraded = [
        bundles.decode_bundle(bytes.fromhex(r["bundle"])) for r in GOLDEN["bundles"]
    ]
    assert bundles.check_succession(first, [second]) == second
    (old,) = [bundles.decode_bundle(bytes.fromhex(r["bundle"])) for r in GOLDEN["history"]]
    assert (old.version, upgraded.version) == (1, 2)
    assert bundles.check_succession(old, [upgraded]) == upgraded
    row = GOLDEN["key_id"]
    assert key_id(row["stanza_type"], bytes.fromhex(row["public_key"])).hex() == row["key_id"]


def check(bundle: bundles.KeyBundle, name: str = "FL-LAB", at: int | None = None) -> None:
    bundles.check_bundle(bundle, name, world().root.certificate, at or now_ms())


def test_a_bundle_for_somebody_else_is_refused() -> None:
    with pytest.raises(BundleForAnother):
        check(party("CA-RC").bundle, "FL-LAB")


def test_a_certificate_of_another_client_is_refused() -> None:
    thief = party("MA-LAB")
    identity = Identity.generate("FL-LAB")
    with pytest.raises(BundleForAnother):
        check(identity.make_bundle(thief.key, thief.chain, now_ms()))


def test_a_bundle_of_another_ca_is_refused() -> None:
    with pytest.raises(BundleNotCertified):
        check(party("FL-LAB", where="ELSEWHERE").bundle)


def test_a_bundle_of_a_certificate_on_another_curve_is_refused() -> None:
    lab = party("FL-LAB")
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = pki.issue_client(world().issuing, key.public_key(), "FL-LAB")
    with pytest.raises(BundleNotCertified, match="P-384"):
        check(lab.identity.make_bundle(key, [leaf, world().issuing.certificate], now_ms()))


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("bad", ["zeros", "no ML-KEM key"])
def test_a_bundle_with_a_key_that_nobody_can_seal_for_is_refused(kind: int, bad: str) -> None:
    lab = party("FL-LAB")
    good = lab.identity.current[kind - 1]
    public = (
        good.public[:-32] + bytes(32)
        if bad == "zeros" or kind == 2
        else b"\xff" * 1184 + good.public[-32:]
    )
    broken = Identity(
        "FL-LAB", bytes(32), None, [DecryptKey(kind, good.seed, public, good.private)]
    )
    with pytest.raises(BundleMalformed):
        check(broken.make_bundle(lab.key, lab.chain, now_ms()))


def crafted(signer: Identity | None = None, **more: Any) -> bytes:
    """A bundle of FL-LAB with any fields, rightly certified, and continued by ``signer``."""
    lab = party("FL-LAB")
    values = {
        "client_id": "FL-LAB",
        "sequence": 1,
        "created_at": lab.bundle.created_at,
        "ends_at": lab.bundle.ends_at,
        "previous_hash": bundles.NO_HASH,
        "keys": lab.bundle.keys,
        "chain": [pki.der(c) for c in lab.chain],
        "salt": bytes(16),
        **more,
    }
    signed = bundles.encode_signed_part(**values)
    digest = hashlib.sha256(signed).digest()
    made = lab.key.sign(label("bundle") + digest, ec.ECDSA(hashes.SHA384()))
    suite, continued = (1, signer.sign("bundle-continuity", digest)) if signer else (0, b"")
    return bundles.encode_bundle(
        signed, made, 1, lab.identity.sign("bundle-own", digest), suite, continued
    )


LAB_KEYS = party("FL-LAB").bundle.keys


@pytest.mark.parametrize(
    "bad",
    [
        {"sequence": 0},
        {"sequence": 2},
        {"previous_hash": b"h" * 32},
        {"keys": LAB_KEYS[:2]},
        {"keys": [*LAB_KEYS, LAB_KEYS[0]]},
        {"keys": [bundles.BundleKey(2, 1, bytes(31))]},
        {"keys": []},
        {"chain": []},
        {"client_id": "CON"},
        {"client_id": ""},
        {"created_at": 2**46},
        {"ends_at": 2**63},
        {"keys": [*LAB_KEYS, bundles.BundleKey(9, 9, bytes(24 * 1024))]},
        {"flags": 1},
        {"flags": 8},
        {"sequence": 2, "previous_hash": b"h" * 32},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_a_bundle_with_a_bad_field_is_refused(bad: dict[str, Any]) -> None:
    check(bundles.decode_bundle(crafted()))
    with pytest.raises(BundleMalformed):
        bundles.decode_bundle(crafted(**bad))


def test_a_bundle_does_not_outlive_its_certificate() -> None:
    with pytest.raises(BundleNotCertified, match="after its certificate"):
        check(bundles.decode_bundle(crafted(ends_at=party("FL-LAB").bundle.ends_at + 1)))


def test_a_certificate_certifies_no_other_clients_bundle() -> None:
    """FL-LAB's own certificate over a bundle in another's name, handed out for FL-LAB's."""
    with pytest.raises(BundleForAnother):
        check(bundles.decode_bundle(crafted(client_id="CA-RC")), "FL-LAB")


def test_succession_is_one_step_from_one_bundle_of_one_client() -> None:
    """Rightly signed by the keys before, and still refused: it skips one, follows another, is
    another client's.
    """
    lab = party("FL-LAB")
    first = lab.bundle

    def after(**more: Any) -> bundles.KeyBundle:
        return bundles.decode_bundle(
            crafted(lab.identity, **{"sequence": 2, "previous_hash": first.hash, **more})
        )

    second = after()
    assert bundles.check_succession(first, [second]) == second
    for wrong in (after(sequence=3), after(previous_hash=b"h" * 32)):
        with pytest.raises(BundleDiscontinuous):
            bundles.check_succession(first, [wrong])
    with pytest.raises(BundleForAnother):
        bundles.check_succession(first, [after(client_id="CA-RC")])


def test_keys_of_kinds_from_the_future_are_kept_and_not_used() -> None:
    lab = party("FL-LAB")
    keys = [bundles.BundleKey(1, 77, b"new"), bundles.BundleKey(9, 1, b"newer"), *lab.bundle.keys]
    bundle = bundles.decode_bundle(crafted(keys=keys))
    check(bundle)
    assert list(bundle.keys) == keys
    assert bundles.best_key(bundle) == lab.bundle.encrypt_keys[0]
    ignored = bundles.decode_bundle(crafted(flags=0xF0))  # flags that may be ignored
    check(ignored)


def test_the_number_binds_every_field_of_the_bundle() -> None:
    """Whatever differs, the digits differ: each key, the bundle before, the sequence number, the
    certificate.
    """
    lab = party("FL-LAB")
    other = Identity.generate("FL-LAB")
    keys = list(LAB_KEYS)
    changed = [
        {"keys": [bundles.BundleKey(1, k.algorithm, k.public), *keys[1:]]}
        for k in other.current[:1]
    ] + [
        {"keys": [keys[0], bundles.BundleKey(1, 2, other.current[1].public), *keys[2:]]},
        {"keys": [keys[1], keys[0], *keys[2:]]},
        {"keys": [*keys, bundles.BundleKey(1, 77, b"new")]},
        {"sequence": 2, "previous_hash": b"h" * 32, "flags": 1},
        {"sequence": 2, "previous_hash": b"i" * 32, "flags": 1},
        {"sequence": 3, "previous_hash": b"h" * 32, "flags": 1},
        {"salt": bytes(15) + b"x"},
        {"created_at": lab.bundle.created_at + 1},
        {"ends_at": lab.bundle.ends_at - 1},
    ]
    numbers = {bundles.fingerprint(bundles.decode_bundle(crafted(**one))) for one in ({}, *changed)}
    assert len(numbers) == len(changed) + 1
    assert all(len(n.replace(" ", "")) == 30 for n in numbers)


def test_two_bundles_of_the_same_keys_have_two_numbers() -> None:
    """A certificate that its issuer chose is no help in finding two bundles with one number: the
    owner adds chance.
    """
    lab = party("FL-LAB")
    at = lab.bundle.created_at
    first, second = (lab.identity.make_bundle(lab.key, lab.chain, at) for _ in range(2))
    assert first.keys == second.keys
    assert bundles.fingerprint(first) != bundles.fingerprint(second)


@pytest.mark.parametrize("signed", ["none", "other"])
@pytest.mark.parametrize("met", [False, True])
def test_the_ca_cannot_put_its_own_encryption_keys_beside_a_real_signing_key(
    signed: str, met: bool
) -> None:
    """HQ with its CA: CA-RC's real Ed25519 key, its own ML-KEM and X25519 keys; at first contact
    and after it.
    """
    center = party("CA-RC")
    evil = with_other_keys(center, signed, center.bundle if met else None)
    assert evil.sign_keys == center.bundle.sign_keys
    assert bundles.fingerprint(evil) != bundles.fingerprint(center.bundle)
    for history in (False, True):
        with pytest.raises(BundleNotSigned, match="other keys beside those of CA-RC"):
            bundles.check_bundle(evil, "CA-RC", world().root.certificate, now_ms(), history=history)


def test_an_owner_of_two_signing_keys_signs_with_both() -> None:
    strong = party("PA-LAB", 2)
    with pytest.raises(BundleNotSigned):
        check(with_other_keys(strong, "ed25519"), "PA-LAB")


def test_a_bundle_of_version_1_is_history() -> None:
    lab = party("FL-LAB")
    old = version_1(lab)
    root = world().root.certificate
    with pytest.raises(BundleOutdated, match=r"0\.6\.0"):
        bundles.check_bundle(old, "FL-LAB", root, now_ms(), ended_is_error=False)
    assert bundles.check_bundle(old, "FL-LAB", root, now_ms(), history=True) == lab.certificate
    upgraded = lab.identity.make_bundle(lab.key, lab.chain, now_ms(), old)
    assert bundles.check_succession(old, [upgraded]) == upgraded
    # the same signing keys, and what HQ's CA can make of them
    with pytest.raises(BundleDiscontinuous):
        bundles.check_succession(old, [with_other_keys(lab, "none", old)])
    with pytest.raises(BundleRolledBack, match="older version"):
        bundles.check_succession(upgraded, [version_1(lab, upgraded)])


def test_a_bundle_signed_by_another_key_is_refused() -> None:
    lab = party("FL-LAB")
    with pytest.raises(BundleNotCertified, match="not signed"):
        check(lab.identity.make_bundle(pki.new_key(), lab.chain, now_ms()))


def test_a_bundle_that_ended_is_refused_unless_its_sender_is_asked_about_the_past() -> None:
    bundle = party("FL-LAB").bundle
    with pytest.raises(BundleExpired):
        check(bundle, at=bundle.ends_at + 1)
    bundles.check_bundle(
        bundle, "FL-LAB", world().root.certificate, bundle.ends_at + 1, ended_is_error=False
    )


@soak.more
@pytest.mark.parametrize("suite", [1, 2])
def test_every_byte_of_a_bundle_counts(suite: int) -> None:
    raw = party("FL-LAB", suite).bundle.raw
    step = 13 if suite == 2 else 1 if soak.ON else 5
    for offset in range(0, len(raw), step):
        changed = raw[:offset] + bytes([raw[offset] ^ 0x40]) + raw[offset + 1 :]
        try:
            bundle = bundles.decode_bundle(changed)
            check(bundle)
        except BundleError:
            continue
        # all that is left: a first bundle has none, and none is asked for
        assert bundle.continuity_suite, offset
    assert raw[-3:] == bytes(3)


def test_succession() -> None:
    lab = party("FL-LAB")
    second_keys, third_keys = Identity.generate("FL-LAB"), Identity.generate("FL-LAB")
    second = second_keys.make_bundle(lab.key, lab.chain, now_ms(), lab.bundle, lab.identity)
    third = third_keys.make_bundle(lab.key, lab.chain, now_ms(), second, second_keys)
    assert bundles.check_succession(lab.bundle, [second, third]) == third
    assert bundles.check_succession(second, [second, third]) == third
    with pytest.raises(BundleDiscontinuous):
        bundles.check_succession(lab.bundle, [third])
    with pytest.raises(BundleRolledBack):
        bundles.check_succession(third, [second])


def test_a_swapped_key_does_not_continue_though_the_ca_certifies_it() -> None:
    lab = party("FL-LAB")
    swapped = Identity.generate("FL-LAB")
    forged = swapped.make_bundle(lab.key, lab.chain, now_ms(), lab.bundle, swapped)
    check(forged)
    with pytest.raises(BundleDiscontinuous, match="fingerprints"):
        bundles.check_succession(lab.bundle, [forged])
    without = swapped.make_bundle(lab.key, lab.chain, now_ms())
    with pytest.raises(BundleRolledBack):
        bundles.check_succession(lab.bundle, [without])


def test_continuity_needs_both_signatures_when_the_keys_before_had_both() -> None:
    strong = party("PA-LAB", 2)
    weak = Identity.generate("PA-LAB")
    ed25519_only = Identity("PA-LAB", strong.identity.seeds()[0], None, strong.identity.current)
    stripped = weak.make_bundle(strong.key, strong.chain, now_ms(), strong.bundle, ed25519_only)
    with pytest.raises(BundleDiscontinuous):
        bundles.check_succession(strong.bundle, [stripped])
    whole = weak.make_bundle(strong.key, strong.chain, now_ms(), strong.bundle, strong.identity)
    assert bundles.check_succession(strong.bundle, [whole]) == whole


@given(st.binary(max_size=300))
def test_any_bytes_are_a_bundle_or_refused(raw: bytes) -> None:
    for buf in (raw, b"CBXB\x01\x00" + raw, b"CBXB\x02\x00" + raw):
        with pytest.raises(BundleMalformed):
            bundles.decode_bundle(buf)
