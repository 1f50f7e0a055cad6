"""The enrolment token."""

from __future__ import annotations

import base64
import hashlib

import attrs
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


def test_any_address_survives() -> None:
    """Among these are tokens of each length modulo 3, so that end in each character of base64."""
    token = decode_token(GOLDEN[0]["text"])
    for port in range(1000, 1500):
        moved = attrs.evolve(token, address=f"hq{'.a' * (port % 3)}.example.org:{port}")
        assert decode_token(encode_token(moved)) == moved


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


def checked(raw: bytes) -> str:
    """Return these bytes as a token, with the right check."""
    raw += hashlib.sha256(raw).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_token_of_any_length_with_the_right_check_is_refused() -> None:
    for size in range(80):
        why = "incomplete" if size < 60 else "inconsistent"
        with pytest.raises(TokenError, match=why):
            decode_token(checked((b"\x01" + bytes(size))[:size]))


HEAD = b"\x01" + bytes(56)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (HEAD + b"\x01A\x00\x03h:1", ""),
        (b"\x02" + HEAD[1:] + b"\x01A\x00\x03h:1", "unknown token version 2"),
        (HEAD + b"\x01A\x00\x02h:1", "inconsistent"),
        (HEAD + b"\x01A\x00\x04h:1", "inconsistent"),
        (HEAD + b"\x01A\x00\x00", "inconsistent"),
        (HEAD + b"\x09A\x00\x03h:1", "inconsistent"),
        (HEAD + b"\x01A\x00\x03h:\xff", "inconsistent"),
    ],
)
def test_a_token_with_the_right_check_and_wrong_fields_is_refused(raw: bytes, why: str) -> None:
    if not why:
        assert decode_token(checked(raw)) == Token("A", "h:1", bytes(32), 0, bytes(16))
        return
    with pytest.raises(TokenError, match=why):
        decode_token(checked(raw))


def test_a_text_with_another_beginning_is_no_token() -> None:
    text = GOLDEN[0]["text"]
    with pytest.raises(TokenError, match="begins with"):
        decode_token("x" * len(PREFIX) + text[len(PREFIX) :])


@pytest.mark.parametrize("length", range(1, 13))
def test_tokens_of_every_length_are_read(length: int) -> None:
    token = Token("A" * length, "h:1", bytes(32), 5, bytes(16))
    assert decode_token(encode_token(token)) == token


@given(st.text(max_size=80), st.booleans())
def test_any_text_is_a_token_or_refused_in_words(text: str, prefixed: bool) -> None:
    with pytest.raises(TokenError):
        decode_token(PREFIX + text if prefixed else text)


@pytest.mark.parametrize("client_id", ["", "-x", "a" * 64, "CON", "ä"])
def test_a_token_for_no_client_id_is_refused(client_id: str) -> None:
    with pytest.raises(TokenError):
        decode_token(encode_token(Token(client_id, "h:1", bytes(32), 0, bytes(16))))
