"""The enrolment token."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.errors import TokenError
from cipherbox.limits import LIMITS
from cipherbox.wire.token import PREFIX, Token, decode_token, encode_token
from tests.golden import files

GOLDEN = files.read("token")


@pytest.mark.parametrize("row", GOLDEN)
def test_golden_tokens(row: dict[str, str]) -> None:
    token = decode_token(row["text"])
    assert files.plain(token) == {k: v for k, v in row.items() if k != "text"}
    assert encode_token(token) == row["text"]


def test_white_space_from_mail_does_not_matter() -> None:
    text = GOLDEN[0]["text"]
    assert decode_token(f"  {text[:30]}\r\n{text[30:]}\n") == decode_token(text)


def test_a_token_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(TokenError, match="too long"):
        decode_token(PREFIX + "A" * (LIMITS.token_bytes + 1))
    with pytest.raises(TokenError, match="damaged"):
        decode_token(PREFIX + "A" * LIMITS.token_bytes)


def test_the_secret_is_never_shown() -> None:
    token = decode_token(GOLDEN[0]["text"])
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


def test_every_changed_or_missing_character_is_noticed() -> None:
    text = GOLDEN[0]["text"]
    for i in range(len(PREFIX), len(text)):
        other = "A" if text[i] != "A" else "B"
        for changed in (text[:i] + other + text[i + 1 :], text[:i], text[:i] + text[i + 1 :]):
            with pytest.raises(TokenError):
                decode_token(changed)


def test_a_token_of_any_length_with_the_right_check_is_refused() -> None:
    for size in range(80):
        raw = (b"\x01" + bytes(size))[:size]
        raw += hashlib.sha256(raw).digest()[:4]
        with pytest.raises(TokenError):
            decode_token(PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode())


@given(st.text(max_size=80), st.booleans())
def test_any_text_is_a_token_or_refused_in_words(text: str, prefixed: bool) -> None:
    with pytest.raises(TokenError):
        decode_token(PREFIX + text if prefixed else text)


@pytest.mark.parametrize("client_id", ["", "-x", "a" * 64, "CON", "ä"])
def test_a_token_for_no_client_id_is_refused(client_id: str) -> None:
    with pytest.raises(TokenError):
        decode_token(encode_token(Token(client_id, "h:1", bytes(32), 0, bytes(16))))
