"""Key files: what they keep, what they refuse, and that they show nothing."""

from __future__ import annotations

import os
from pathlib import Path

import nacl.exceptions
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.envelope.suites import SignatureSuite
from cipherbox.errors import CipherBoxError, CredentialsError, PasswordError, WrongPassword
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.open import open_envelope, parse_envelope
from tests.golden.make_envelopes import MESSAGES, sealed
from tests.parties import party


def test_key_files_keep_everything_and_show_nothing(tmp_path: Path) -> None:
    ca = party("CA-RC", 2)
    path, key = tmp_path / "keys.cbk", os.urandom(32)
    keyfile.save(path, ca.identity, local_key=key)
    assert path.stat().st_mode & 0o777 == 0o600
    back = keyfile.load(path, local_key=key)
    assert back.seeds() == ca.identity.seeds()
    assert back.bundle == ca.identity.bundle
    raw = sealed(party("FL-LAB"), [ca], MESSAGES)
    assert open_envelope(parse_envelope(raw), back, party("FL-LAB").bundle)
    secrets = [s for s in ca.identity.seeds() if s] + [k.seed for k in ca.identity.current]
    shown = repr(ca.identity) + repr(ca.identity.current) + str(vars(ca.identity).get("current"))
    for secret in secrets:
        assert secret not in path.read_bytes()
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_what_comes_and_what_was_is_kept_too(tmp_path: Path) -> None:
    first = Identity.generate("CA-RC")
    second = Identity.generate("CA-RC", SignatureSuite.ED25519_MLDSA65)
    path, key = tmp_path / "keys.cbk", os.urandom(32)
    first.upcoming = second
    keyfile.save(path, first, local_key=key)
    back = keyfile.load(path, local_key=key)
    assert back.upcoming is not None
    assert back.upcoming.seeds() == second.seeds()
    for old_or_new in (*first.current, *second.current):
        assert back.decrypt_key(old_or_new.key_id) == old_or_new
    back.promote(77)
    keyfile.save(path, back, local_key=key)
    after = keyfile.load(path, local_key=key)
    assert after.seeds() == second.seeds()
    assert after.upcoming is None
    assert [(k.key_id, k.retired_at) for k in after.retired] == [
        (k.key_id, 77) for k in first.current
    ]
    assert {k.public for k in after.current}.isdisjoint(k.public for k in after.retired)
    assert after.destroy(77) == 0
    assert after.destroy(78) == 2
    assert after.decrypt_key(first.current[0].key_id) is None
    assert after.decrypt_key(second.current[0].key_id) is not None


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path, key = tmp_path / "keys.cbk", os.urandom(32)
    now, old = Identity.generate("CA-RC"), Identity.generate("CA-RC")
    now.retired = old.current
    keyfile.save(path, now, local_key=key)
    document = orjson.loads(keyfile.decrypt(path.read_bytes(), local_key=key))
    document["retired"] = [row[:2] for row in document["retired"]]
    del document["upcoming"]
    path.write_bytes(keyfile.encrypt(orjson.dumps(document), local_key=key))
    back = keyfile.load(path, local_key=key)
    assert back.decrypt_key(old.current[0].key_id) is not None
    assert back.destroy(1 << 60) == 0  # nobody knows since when: they stay


def test_a_wrong_key_a_changed_byte_and_a_planted_cost_are_refused() -> None:
    key = os.urandom(32)
    data = keyfile.encrypt(b"secret", local_key=key)
    for offset in range(len(data)):
        with pytest.raises(CredentialsError):
            keyfile.decrypt(
                data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :], local_key=key
            )
    with pytest.raises(CredentialsError, match="wrong"):
        keyfile.decrypt(data, local_key=bytes(32))
    with pytest.raises(CredentialsError, match="password"):
        keyfile.decrypt(keyfile.encrypt(b"x", password=b"pw"), local_key=key)
    locked = keyfile.encrypt(b"x", password=b"pw")
    assert keyfile.decrypt(locked, password=b"pw") == b"x"
    with pytest.raises(WrongPassword) as caught:
        keyfile.decrypt(locked, password=b"pv")
    assert str(caught.value) == "The password is wrong"
    assert caught.value.__cause__ is None
    with pytest.raises(PasswordError, match="empty"):
        keyfile.encrypt(b"x", password=b"")
    for memory, passes in ((2**31, 4), (65_536, 17), (0, 1), (65_536, 0)):
        planted = locked[:6] + memory.to_bytes(4, "big") + passes.to_bytes(4, "big") + locked[14:]
        with pytest.raises(CredentialsError, match="exceed the limits"):
            keyfile.decrypt(planted, password=b"pw")


def test_every_byte_of_a_key_file_under_a_password_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "MEMORY_KIB", 8)
    monkeypatch.setattr(keyfile, "PASSES", 1)
    data = keyfile.encrypt(b"secret", password=b"pw")
    assert keyfile.decrypt(data, password=b"pw") == b"secret"
    for offset in range(len(data)):
        for bit in (0x01, 0x80):
            with pytest.raises((CredentialsError, WrongPassword)) as caught:
                keyfile.decrypt(
                    data[:offset] + bytes([data[offset] ^ bit]) + data[offset + 1 :], password=b"pw"
                )
            assert "secret" not in repr(caught.value)
    for end in range(len(data)):
        with pytest.raises((CredentialsError, WrongPassword)):
            keyfile.decrypt(data[:end], password=b"pw")
    with pytest.raises(WrongPassword):
        keyfile.decrypt(data + b"\0", password=b"pw")


def test_a_file_knows_what_its_password_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keyfile.is_cheap(keyfile.encrypt(b"x", local_key=bytes(32)))
    assert not keyfile.is_cheap(b"CBXK\x01\x02")
    today = keyfile.MEMORY_KIB, keyfile.PASSES
    assert today == (64 * 1024, 4)
    for memory, passes, cheap in (
        (8, 1, True),
        (8, 4, True),
        (64 * 1024, 3, True),
        (16, 9, False),
        (*today, False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(keyfile, "MEMORY_KIB", memory)
            patch.setattr(keyfile, "PASSES", passes)
            data = keyfile.encrypt(b"x", password=b"pw")
        assert keyfile.is_cheap(data) is cheap, (memory, passes)
        assert keyfile.decrypt(data, password=b"pw") == b"x"


def test_a_machine_without_the_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> bytes:
        raise nacl.exceptions.RuntimeError

    locked = keyfile.encrypt(b"x", password=b"pw")
    monkeypatch.setattr(keyfile.nacl.pwhash.argon2id, "kdf", no_memory)
    with pytest.raises(CredentialsError, match="64 MiB"):
        keyfile.decrypt(locked, password=b"pw")


def test_a_local_key_has_32_bytes() -> None:
    with pytest.raises(CredentialsError, match="31"):
        keyfile.encrypt(b"x", local_key=bytes(31))
    with pytest.raises(CredentialsError):
        keyfile.decrypt(keyfile.encrypt(b"x", local_key=bytes(32)), local_key=bytes(31))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_key_file_or_refused(raw: bytes) -> None:
    for buf in (raw, b"CBXK\x01\x01" + raw, b"CBXK\x01\x02" + raw[:4]):
        with pytest.raises(CipherBoxError):
            keyfile.decrypt(buf, local_key=bytes(32))
