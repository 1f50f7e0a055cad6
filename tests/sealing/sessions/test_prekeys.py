"""Prekeys: signed by the keys of a trusted bundle, and no others'."""

from __future__ import annotations

import hashlib
import os

import pytest

from cipherbox.envelope import prekeys as public_form
from cipherbox.errors import (
    BundleError,
    BundleForAnother,
    BundleMalformed,
    BundleNotCertified,
    StoreError,
)
from cipherbox.sealing.ratchet.double_ratchet import public
from cipherbox.sealing.ratchet.prekeys import Pair, offer, offer_once, verified_prekeys
from tests.parties import party

OWNER = party("CA-RC")
KEYS = dict(OWNER.bundle.sign_keys)
IDENTITY, SIGNED, ONCE = os.urandom(32), Pair.generate(), Pair.generate()
OFFERED = offer(OWNER.identity, IDENTITY, 4, SIGNED, 5)
OFFERED_ONCE = offer_once(OWNER.identity, IDENTITY, 9, ONCE)


def test_what_was_offered_is_believed() -> None:
    found = verified_prekeys("CA-RC", KEYS, OFFERED, OFFERED_ONCE)
    assert (found.identity, found.signed_id, found.signed) == (
        public(IDENTITY),
        4,
        public(SIGNED.dh),
    )
    assert (found.once_id, found.once, found.kem) == (9, public(ONCE.dh), ONCE.kem_public)
    last_resort = verified_prekeys("CA-RC", KEYS, OFFERED, b"")
    assert (last_resort.kem, last_resort.once_id) == (SIGNED.kem_public, 0)
    assert public_form.decode(OFFERED).made_at == 5


def test_every_byte_of_prekeys_counts() -> None:
    for which, raw in enumerate((OFFERED, OFFERED_ONCE)):
        for offset in range(0, len(raw), 7):
            parts = [OFFERED, OFFERED_ONCE]
            parts[which] = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
            with pytest.raises(BundleError):
                verified_prekeys("CA-RC", KEYS, *parts)
            parts[which] = raw[:offset]
            if parts[which]:
                with pytest.raises(BundleMalformed):
                    verified_prekeys("CA-RC", KEYS, *parts)
        parts = [OFFERED, OFFERED_ONCE]
        parts[which] = raw + b"x"
        with pytest.raises(BundleMalformed, match="length"):
            verified_prekeys("CA-RC", KEYS, *parts)


def test_prekeys_of_another_client_identity_or_kind_are_refused() -> None:
    with pytest.raises(BundleForAnother, match="got those of CA-RC"):
        verified_prekeys("NY-RC", KEYS, OFFERED, b"")
    with pytest.raises(BundleNotCertified, match="not signed by its keys"):
        verified_prekeys("CA-RC", dict(party("NY-RC").bundle.sign_keys), OFFERED, b"")
    with pytest.raises(BundleNotCertified, match="belongs to other prekeys"):
        verified_prekeys(
            "CA-RC", KEYS, OFFERED, offer_once(OWNER.identity, os.urandom(32), 9, ONCE)
        )
    with pytest.raises(BundleMalformed):
        verified_prekeys("CA-RC", KEYS, OFFERED_ONCE, b"")
    with pytest.raises(BundleMalformed):
        verified_prekeys("CA-RC", KEYS, OFFERED, OFFERED)
    with pytest.raises(BundleMalformed, match="no id"):
        verified_prekeys("CA-RC", KEYS, OFFERED, offer_once(OWNER.identity, IDENTITY, 0, ONCE))


def test_what_is_signed_and_is_no_key_is_refused() -> None:
    identity = OWNER.identity
    good = (public(IDENTITY), 4, public(SIGNED.dh), SIGNED.kem_public)
    zeros = bytes(32)
    for wrong in (
        (zeros, *good[1:]),
        (good[0], 4, zeros, good[3]),
        (*good[:3], b"\xff" * len(good[3])),
    ):
        raw = public_form.unsigned("CA-RC", 5, *wrong, identity.suite)
        raw += identity.sign(public_form.USE, hashlib.sha256(raw).digest())
        with pytest.raises(BundleMalformed, match="not a valid key"):
            verified_prekeys("CA-RC", KEYS, raw, b"")


def test_a_pair_is_stored_whole() -> None:
    assert Pair.decode(SIGNED.encode()) == SIGNED
    for wrong in (SIGNED.encode()[:-1], SIGNED.encode() + b"x", b""):
        with pytest.raises(StoreError):
            Pair.decode(wrong)
