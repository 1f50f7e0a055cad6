"""What lies on this machine's disk: secret boxes, and files of encrypted chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cipherbox.errors import DecryptionFailed
from cipherbox.sealing.encrypted_file import CHUNK, SLOT, ClearFile, EncryptedFile, RandomAccessFile
from cipherbox.sealing.local_secret_box import SECRET_BOX_BYTES, LocalSecretBox, SecretBox

LOCAL = LocalSecretBox(bytes(32))
BOX = LOCAL.content_box
Opened = Callable[[Path], RandomAccessFile]


def test_each_purpose_has_a_key_of_its_own_and_each_place_its_bytes() -> None:
    for box, other in ((LOCAL.session_box, BOX), (BOX, LOCAL.session_box)):
        locked = box.encrypt(b"secret", b"here")
        assert len(locked) == len(b"secret") + SECRET_BOX_BYTES
        assert box.decrypt(locked, b"here") == b"secret"
        for wrong in (other, SecretBox(b"\x01" * 32)):
            with pytest.raises(DecryptionFailed):
                wrong.decrypt(locked, b"here")
        with pytest.raises(DecryptionFailed):
            box.decrypt(locked, b"there")
        with pytest.raises(DecryptionFailed):
            box.decrypt(locked[:10], b"here")
    again = LocalSecretBox(bytes(32))
    assert again.content_box.decrypt(BOX.encrypt(b"x", b""), b"") == b"x"


def open_clear(path: Path) -> RandomAccessFile:
    return ClearFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def open_encrypted(path: Path) -> RandomAccessFile:
    return EncryptedFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), BOX, b"a name")


@pytest.mark.parametrize("opened", [open_clear, open_encrypted])
def test_a_file_is_written_and_read_at_any_place(tmp_path: Path, opened: Opened) -> None:
    file = opened(tmp_path / "f")
    file.write(b"in the second", CHUNK + 5)
    file.write(b"over an edge", CHUNK * 3 - 4)
    file.write(b"IN", CHUNK + 5)
    file.sync(CHUNK * 4)
    file.close()
    file = opened(tmp_path / "f")
    assert file.read(13, CHUNK + 5) == b"IN the second"
    assert file.read(12, CHUNK * 3 - 4) == b"over an edge"
    assert file.read(CHUNK + 5, 0) == bytes(CHUNK + 5)  # what was not written is zeros
    whole = file.read(CHUNK * 9, 0)
    assert len(whole) == CHUNK * 4
    assert whole.replace(b"\0", b"") == b"IN the secondover an edge"
    assert file.read(10, CHUNK * 4) == b""
    file.sync(CHUNK)
    assert len(file.read(CHUNK * 9, 0)) == CHUNK
    file.close()


def test_chunks_that_were_changed_or_moved_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    file = open_encrypted(path)
    file.write(b"a" * CHUNK + b"b" * CHUNK, 0)
    raw = path.read_bytes()
    assert len(raw) == 2 * SLOT
    assert b"aaaa" not in raw
    path.write_bytes(raw[SLOT:] + raw[:SLOT])
    with pytest.raises(DecryptionFailed):
        file.read(1, 0)
    path.write_bytes(raw[:SLOT] + raw[SLOT:-1] + bytes([raw[-1] ^ 1]))
    assert file.read(CHUNK, 0) == b"a" * CHUNK
    with pytest.raises(DecryptionFailed):
        file.read(1, CHUNK)
    file.close()
    other = EncryptedFile(os.open(path, os.O_RDWR), BOX, b"another name")
    with pytest.raises(DecryptionFailed):
        other.read(1, 0)
    other.close()
