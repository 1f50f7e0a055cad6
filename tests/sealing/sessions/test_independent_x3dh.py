"""Our handshake beside X3DH by others, where that package has compiled parts (Linux; see the
conftest beside this).

X3DH is the part without the KEM: the same Diffie-Hellman values, in the same order, into the same
KDF.
"""

from __future__ import annotations

import pytest
from x3dh import Bundle, IdentityKeyFormat
from x3dh import HashFunction as X3dhHash
from x3dh.base_state import BaseState
from x3dh.identity_key_pair import IdentityKeyPairPriv
from x3dh.pre_key_pair import PreKeyPair
from x3dh.signed_pre_key_pair import SignedPreKeyPair

from cipherbox.sealing.ratchet import double_ratchet as ratchet
from cipherbox.sealing.ratchet import handshake


class X3dh(BaseState):
    @staticmethod
    def _encode_public_key(key_format: IdentityKeyFormat, pub: bytes) -> bytes:
        return b"\x05" + pub


@pytest.mark.parametrize("once", [True, False])
async def test_the_handshake_without_its_kem_is_x3dh(once: bool) -> None:
    me, you = (
        X3dh.create(
            IdentityKeyFormat.CURVE_25519,
            X3dhHash.SHA_256,
            handshake.INFO,
            IdentityKeyPairPriv(key),
        )
        for key in (bytes([1]) * 32, bytes([2]) * 32)
    )
    if once:
        you.generate_pre_keys(1)
    bundle: Bundle = you.bundle
    secret, associated, header = await me.get_shared_secret_active(bundle, require_pre_key=once)
    again, _, signed = await you.get_shared_secret_passive(header, require_pre_key=once)
    assert secret == again
    assert isinstance(signed, SignedPreKeyPair)
    parts = [
        ratchet.shared(signed.priv, header.identity_key),
        ratchet.shared(bytes([2]) * 32, header.ephemeral_key),
        ratchet.shared(signed.priv, header.ephemeral_key),
    ]
    if once:
        (private,) = you.model.pre_keys
        assert PreKeyPair(private).pub == header.pre_key
        parts.append(ratchet.shared(private, header.ephemeral_key))
    assert handshake.dh_secrets(tuple(parts), b"") == secret
    assert associated == b"\x05" + header.identity_key + b"\x05" + bundle.identity_key
