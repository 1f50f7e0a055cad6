"""The stanza `rsa-oaep`: golden envelopes, every failure by its name, keys that are refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509 import load_der_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.envelope import bundle as bundles
from cipherbox.envelope import rsa as rsa_keys
from cipherbox.envelope.layout import split
from cipherbox.errors import (
    BundleError,
    BundleMalformed,
    DecryptionFailed,
    EnvelopeError,
    KeyMissing,
    NotRecipient,
    UnsafeMix,
)
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing import rsa, stanzas
from cipherbox.sealing import seal as sealing
from cipherbox.sealing.body import pack, text_message
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.sealing.open import open_envelope, parse_envelope
from tests.golden import files
from tests.golden.make_envelopes import MESSAGES, resigned, sealed
from tests.golden.make_rsa import crafted, dishonest, mixed, rsa_key, unusable, with_rsa
from tests.parties import now_ms, party, world

GOLDEN = files.read("rsa")
KEY = rsa_key().private
OVERHEAD = 48


def golden_identity(name: str) -> Identity:
    keys = [
        DecryptKey.from_seed(kind, bytes.fromhex(seed)) for kind, seed in GOLDEN["recipients"][name]
    ]
    return Identity(name, bytes(32), None, keys)


def golden_sender(row: dict[str, str]) -> bundles.KeyBundle:
    return bundles.decode_bundle(bytes.fromhex(GOLDEN["bundles"][row["sender_bundle"]]))


# -- golden ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN["opens"], ids=lambda r: r["name"])
def test_golden_envelopes_open_for_every_recipient(row: dict[str, Any]) -> None:
    parsed = parse_envelope(bytes.fromhex(row["envelope"]))
    for entry in parsed.layout.prefix.recipients:
        messages = open_envelope(parsed, golden_identity(entry.client_id), golden_sender(row))
        assert [m.content.hex() for m in messages] == [m["content"] for m in row["messages"]]


@pytest.mark.parametrize("row", GOLDEN["fails"], ids=lambda r: r["name"])
def test_golden_damage_fails_by_its_name(row: dict[str, str]) -> None:
    with pytest.raises(EnvelopeError) as found:
        open_envelope(
            parse_envelope(bytes.fromhex(row["envelope"])),
            golden_identity(row["recipient"]),
            golden_sender(row),
        )
    assert found.value.name == row["error"]


@pytest.mark.parametrize("name", GOLDEN["recipient_bundles"])
def test_golden_bundles_with_rsa_keys_are_believed(name: str) -> None:
    bundle = bundles.decode_bundle(bytes.fromhex(GOLDEN["recipient_bundles"][name]))
    root = load_der_x509_certificate(bytes.fromhex(GOLDEN["root"]))
    bundles.check_bundle(bundle, name, root, bundle.created_at)
    assert bundle.encrypt_keys[-1].key_id == golden_identity(name).current[-1].key_id


@pytest.mark.parametrize("row", GOLDEN["bad_bundles"], ids=lambda r: r["name"])
def test_golden_bundles_with_unusable_rsa_keys_are_refused(row: dict[str, str]) -> None:
    root = load_der_x509_certificate(bytes.fromhex(GOLDEN["root"]))
    bundle = bundles.decode_bundle(bytes.fromhex(row["bundle"]))
    with pytest.raises(BundleError) as found:
        bundles.check_bundle(bundle, "CA-RC", root, bundle.created_at)
    assert found.value.name == row["error"]


# -- the stanza ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 2056, 3072, 4096])
def test_what_is_sealed_opens_and_is_as_long_as_the_manual_says(bits: int) -> None:
    lab, ca = party("FL-LAB"), with_rsa("CA-RC", bits)
    raw = sealed(lab, [ca, with_rsa("NY-RC")], MESSAGES, stanza=3)
    (entry, _) = split(raw).prefix.recipients
    assert (entry.stanza_type, entry.stanza_length) == (3, bits // 8 + OVERHEAD)
    for identity in (ca.identity, with_rsa("NY-RC").identity):
        assert [m.content for m in open_envelope(parse_envelope(raw), identity, lab.bundle)] == [
            m.content for m in MESSAGES
        ]


def test_dishonest_senders_are_told_apart_by_the_failure() -> None:
    lab, ca = party("FL-LAB"), with_rsa("CA-RC")
    for what, raw, error in dishonest(lab, ca, with_rsa("NY-RC")):
        with pytest.raises(EnvelopeError) as found:
            open_envelope(parse_envelope(raw), ca.identity, lab.bundle)
        assert found.value.name == error, what


@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_every_byte_of_an_envelope_counts(bit: int) -> None:
    """Also when the sender signs what was changed: each part is bound to the others."""
    lab, ca = party("FL-LAB"), with_rsa("CA-RC")
    raw = sealed(lab, [ca], [text_message("every byte")], stanza=3)
    for offset in range(len(raw)):
        changed = raw[:offset] + bytes([raw[offset] ^ bit]) + raw[offset + 1 :]
        with pytest.raises(EnvelopeError):
            open_envelope(parse_envelope(changed), ca.identity, lab.bundle)
        if split(raw).stanzas_at <= offset < split(raw).signatures_at:
            with pytest.raises(DecryptionFailed):
                open_envelope(
                    parse_envelope(resigned(changed, lab.identity)), ca.identity, lab.bundle
                )


def test_a_stanza_opens_in_its_own_place_alone() -> None:
    key = rsa_key()
    wrapped = stanzas.wrap(3, key.public, bytes(32), b"h" * 32, 0)
    assert stanzas.unwrap(3, key.private, wrapped, b"h" * 32, 0) == bytes(32)
    for prefix_hash, index in ((b"i" * 32, 0), (b"h" * 32, 1), (b"h" * 32, 65_535)):
        with pytest.raises(DecryptionFailed):
            stanzas.unwrap(3, key.private, wrapped, prefix_hash, index)
    with pytest.raises(DecryptionFailed):
        stanzas.unwrap(3, rsa_key(copy=1).private, wrapped, b"h" * 32, 0)
    with pytest.raises(DecryptionFailed):
        stanzas.unwrap(3, rsa_key(3072).private, wrapped, b"h" * 32, 0)
    assert wrapped != stanzas.wrap(3, key.public, bytes(32), b"h" * 32, 0)


def test_the_secret_is_not_taken_for_another_label_or_type() -> None:
    """The binding is of this type: the same secret and prefix under another label makes another
    key.
    """
    wrapped = rsa.RsaOaep().encrypt(
        bytes(32), KEY.public_key(), stanzas.SCHEMES[2].info + b"h" * 32 + bytes(2)
    )
    with pytest.raises(DecryptionFailed):
        stanzas.unwrap(3, KEY, wrapped, b"h" * 32, 0)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64, 190])
def test_a_secret_and_a_content_key_have_32_bytes(length: int) -> None:
    info = stanzas.SCHEMES[3].info + b"h" * 32 + bytes(2)
    secret = os.urandom(length)
    short = KEY.public_key().encrypt(secret, rsa.OAEP)
    sealed_key = AESGCM(rsa.hkdf(secret, info, 32)).encrypt(bytes(12), bytes(32), None)
    with pytest.raises(DecryptionFailed):
        stanzas.unwrap(3, KEY, short + sealed_key, b"h" * 32, 0)
    with pytest.raises(DecryptionFailed):
        stanzas.unwrap(
            3, KEY, rsa.RsaOaep().encrypt(bytes(length), KEY.public_key(), info), b"h" * 32, 0
        )


@given(st.binary(max_size=600))
def test_any_bytes_in_place_of_a_stanza_are_refused(raw: bytes) -> None:
    for stanza in (
        raw,
        raw.ljust(304, b"\x00"),
        raw.ljust(304, b"\xff"),
        b"\x00" * 304,
        b"\xff" * 304,
    ):
        with pytest.raises(DecryptionFailed):
            stanzas.unwrap(3, KEY, stanza, bytes(32), 0)


def test_who_is_no_recipient_and_who_has_no_key() -> None:
    lab, ca = party("FL-LAB"), with_rsa("CA-RC")
    raw = sealed(lab, [ca], MESSAGES, stanza=3)
    with pytest.raises(NotRecipient):
        open_envelope(parse_envelope(raw), with_rsa("NY-RC").identity, lab.bundle)
    with pytest.raises(KeyMissing):
        open_envelope(parse_envelope(raw), party("CA-RC").identity, lab.bundle)


# -- choosing --------------------------------------------------------------------------------------


def test_an_rsa_key_is_used_when_it_is_asked_for_or_alone() -> None:
    ca, ny, alone = with_rsa("CA-RC"), party("NY-RC"), with_rsa("SF-RC", alone=True)
    assert [k.algorithm for k in sealing.choose_keys([ca.bundle, ny.bundle])] == [1, 1]
    assert [k.algorithm for k in sealing.choose_keys([ca.bundle, alone.bundle], stanza=3)] == [3, 3]
    assert [k.algorithm for k in sealing.choose_keys([alone.bundle])] == [3]
    with pytest.raises(BundleError, match="NY-RC has published no key for rsa-oaep"):
        sealing.choose_keys([ca.bundle, ny.bundle], stanza=3)
    with pytest.raises(BundleError, match="SF-RC has published no key for hpke-mlkem768-x25519"):
        sealing.choose_keys([alone.bundle], stanza=1)


def test_rsa_beside_a_post_quantum_recipient_needs_a_word() -> None:
    lab, ca, alone = party("FL-LAB"), with_rsa("CA-RC"), with_rsa("SF-RC", alone=True)
    with pytest.raises(UnsafeMix, match="SF-RC"):
        sealing.choose_keys([ca.bundle, alone.bundle])
    with pytest.raises(UnsafeMix, match="SF-RC"):
        sealing.seal(
            lab.identity,
            [ca.bundle, alone.bundle],
            pack(MESSAGES),
            3,
            envelope_id=bytes(16),
            sealed_at=now_ms(),
        )
    raw = mixed(lab, [ca, alone])
    assert [r.stanza_type for r in split(raw).prefix.recipients] == [1, 3]
    for who in (ca, alone):
        assert open_envelope(parse_envelope(raw), who.identity, lab.bundle)


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "public"), unusable(), ids=[what for what, _ in unusable()])
def test_a_bundle_with_an_rsa_key_nobody_may_seal_for_is_refused(what: str, public: bytes) -> None:
    bundle = crafted("CA-RC", public)
    with pytest.raises(BundleMalformed) as found:
        bundles.check_bundle(bundle, "CA-RC", world().root.certificate, now_ms())
    if "bits" in what:
        assert what.removesuffix(" bits") in str(found.value)
    with pytest.raises(BundleMalformed, match="CA-RC"):
        sealing.seal(
            party("FL-LAB").identity,
            [bundle],
            pack(MESSAGES),
            3,
            envelope_id=bytes(16),
            sealed_at=now_ms(),
            keys=sealing.choose_keys([bundle], stanza=3),
        )


@given(st.binary(max_size=400), st.integers(0, 293), st.integers(1, 255))
def test_any_bytes_are_an_rsa_key_or_refused(raw: bytes, at: int, flip: int) -> None:
    good = rsa_key().public
    with pytest.raises(BundleMalformed):
        rsa_keys.load_public(raw)
    try:
        rsa_keys.load_public(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :])
    except BundleMalformed:
        pass  # else another modulus, whose owner has no key for it


def test_a_bundle_with_an_rsa_key_continues_and_has_another_number() -> None:
    before, after = party("CA-RC"), with_rsa("CA-RC")
    assert bundles.check_succession(before.bundle, [after.bundle]) == after.bundle
    assert after.bundle.sequence == 2
    assert after.bundle.encrypt_keys[:2] == before.bundle.encrypt_keys
    # it binds this key, too
    assert bundles.fingerprint(after.bundle) != bundles.fingerprint(before.bundle)


def test_a_replaced_key_goes_on_opening_and_the_key_file_keeps_both(tmp_path: Path) -> None:
    lab, ca = party("FL-LAB"), with_rsa("CA-RC")
    raw = sealed(lab, [ca], MESSAGES, stanza=3)
    new = rsa_key(copy=1)
    kept = ca.identity.with_key(new)
    assert kept.decrypt_key(new.key_id) == new
    assert new not in kept.current
    later = kept.with_current([*(k.key_id for k in kept.current[:-1]), new.key_id])
    assert [k.algorithm for k in later.current] == [1, 2, 3]
    keyfile.save(tmp_path / "keys.cbk", later, local_key=bytes(32))
    assert (tmp_path / "keys.cbk").stat().st_mode & 0o777 == 0o600
    back = keyfile.load(tmp_path / "keys.cbk", local_key=bytes(32))
    assert (back.current, back.retired) == (later.current, later.retired)
    assert open_envelope(parse_envelope(raw), back, lab.bundle)
    assert new.seed.hex() not in repr(back.current)
    assert new.seed not in (tmp_path / "keys.cbk").read_bytes()
    with pytest.raises(KeyMissing):
        later.with_current([bytes(16)])


def test_an_identity_follows_its_own_key_file_alone() -> None:
    ca = party("CA-RC")
    old = Identity("CA-RC", *ca.identity.seeds(), ca.identity.current)
    new = old.with_key(rsa_key())
    assert old.update_from(new)
    assert old.decrypt_key(rsa_key().key_id) is not None
    assert not old.update_from(new)
    assert not old.update_from(Identity.generate("CA-RC"))
    assert not old.update_from(Identity("NY-RC", *ca.identity.seeds(), ca.identity.current))
