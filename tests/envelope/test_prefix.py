"""Ids, prefix and layout: totality, and what must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.envelope.ids import (
    EnvelopeIds,
    id_time_ms,
    is_envelope_id,
    message_id,
    split_message_id,
)
from cipherbox.envelope.layout import split
from cipherbox.envelope.prefix import FIXED, Recipient, decode_prefix, encode_prefix
from cipherbox.errors import CipherBoxError, EnvelopeError, MalformedEnvelope
from tests.parties import now_ms

# -- ids -------------------------------------------------------------------------------------------


def test_ids_rise_also_when_the_clock_goes_back_or_stands() -> None:
    clock = iter([1000] * 5000 + [500] * 5000 + [10_000] * 3)
    ids = EnvelopeIds(lambda: next(clock))
    made = [ids.next() for _ in range(10_003)]
    assert made == sorted(set(made))
    assert all(is_envelope_id(i) for i in made)
    assert id_time_ms(made[0]) == 1000
    assert id_time_ms(made[-1]) == 10_000


def test_an_id_holds_time_counter_and_randomness_where_the_module_says() -> None:
    noise = iter([b"\xff" * 8, bytes(8), b"\x80" + bytes(6) + b"\x05"])
    clock = iter([0x123456789ABC, 0x123456789ABC, 0x123456789ABD])
    ids = EnvelopeIds(lambda: next(clock), lambda count: next(noise)[:count])
    assert ids.next().hex("-", 2) == "1234-5678-9abc-73ff-bfff-ffff-ffff-0000"
    assert ids.next().hex("-", 2) == "1234-5678-9abc-7400-8000-0000-0000-0000"
    assert ids.next().hex("-", 2) == "1234-5678-9abd-7200-8000-0000-0005-0000"


def test_a_millisecond_without_ids_left_borrows_from_the_next() -> None:
    ids = EnvelopeIds(lambda: 1000, lambda count: b"\xff" * count)
    made = [ids.next() for _ in range(0xFFF - 0x3FF + 2)]
    assert [one[:8].hex() for one in made[-2:]] == ["0000000003e87fff", "0000000003e973ff"]


@pytest.mark.parametrize("now", [0, 1])
def test_ids_rise_from_a_clock_that_was_never_set(now: int) -> None:
    ids = EnvelopeIds(lambda: now, lambda count: b"\xff" * count)
    first, second = ids.next(), ids.next()
    assert first[:8].hex() == ("0000000000007001", "00000000000173ff")[now]
    assert first < second
    assert is_envelope_id(first)


def test_ids_of_a_clock_that_was_far_ahead_are_not_continued() -> None:
    """HQ refused every later one, for as long as the clock had been ahead."""
    day = 86_400_000
    clock = iter([5 * day, 5 * day - 3_600_000, day, day])
    ids = EnvelopeIds(lambda: next(clock))
    first, close, right, later = (ids.next() for _ in range(4))
    assert first < close
    assert id_time_ms(close) == 5 * day
    assert id_time_ms(right) == day
    assert right < later


def test_message_ids_lead_back_to_their_envelope() -> None:
    one = EnvelopeIds(now_ms).next()
    for index in (0, 1, 65_535):
        found = message_id(one, index)
        assert split_message_id(str(found)) == split_message_id(found) == (one, index)
    with pytest.raises(CipherBoxError, match="message id"):
        split_message_id("nonsense")


# -- prefix ----------------------------------------------------------------------------------------


def a_prefix(**more: object) -> bytes:
    values = {
        "body_length": 16,
        "sealed_at": 5,
        "expires_at": 0,
        "envelope_id": EnvelopeIds(now_ms).next(),
        "generation": 0,
        "message_count": 1,
        "body_cipher": 1,
        "signature_suite": 1,
        "bundle_hash": bytes(32),
        "commitment": bytes(32),
        "plain_commitment": bytes(32),
        "sender": "FL-LAB",
        "exchange": "",
        "routing_key": "",
        "recipients": (Recipient(bytes(16), 2, 80, "CA-RC"),),
        **more,
    }
    return encode_prefix(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"sender": "-x"},
        {"sender": ""},
        {"exchange": "a\nb"},
        {"routing_key": "\x00"},
        {"exchange": "x" * 128},
        {"message_count": 0},
        {"message_count": 65_537},
        {"body_length": 15},
        {"envelope_id": bytes(16)},
        {"expires_at": 5},
        {"body_cipher": 3},
        {"signature_suite": 9},
        {"recipients": ()},
        {"recipients": (Recipient(bytes(16), 2, 81, "CA-RC"),)},
        {"recipients": (Recipient(bytes(16), 9, 80, "CA-RC"),)},
        {"recipients": (Recipient(bytes(16), 2, 80, "CON"),)},
        {
            "recipients": (
                Recipient(bytes(16), 2, 80, "CA-RC"),
                Recipient(bytes(16), 2, 80, "ca-rc"),
            )
        },
        {"recipients": tuple(Recipient(bytes(16), 2, 80, f"R{i}") for i in range(257))},
    ],
    ids=str,
)
def test_a_prefix_with_a_bad_field_is_refused(bad: dict[str, object]) -> None:
    decode_prefix(a_prefix())
    with pytest.raises(EnvelopeError):
        decode_prefix(a_prefix(**bad))


def test_a_prefix_of_the_largest_size_is_taken() -> None:
    names = tuple(Recipient(bytes(16), 2, 80, f"{i:063d}") for i in range(256))
    raw = a_prefix(recipients=names, sender="s" * 63, exchange="e" * 127, routing_key="k" * 127)
    assert len(decode_prefix(raw).recipients) == 256
    whole = raw + bytes(256 * 80 + 16 + 64)
    assert split(memoryview(whole)) == split(whole)


def test_nothing_hides_between_the_recipients_and_the_stanzas() -> None:
    raw = a_prefix()
    length = len(raw) + 3
    padded = raw[:6] + length.to_bytes(4, "big") + raw[10:] + b"hid"
    split(raw + bytes(80 + 16 + 64))
    for buf in (padded, padded + bytes(80 + 16 + 64)):
        with pytest.raises(MalformedEnvelope, match="does not have the length"):
            split(buf)


@given(st.binary(max_size=400))
def test_any_bytes_are_an_envelope_or_refused(raw: bytes) -> None:
    for buf in (raw, a_prefix()[:4] + b"\x01\x00" + raw, a_prefix() + raw):
        with pytest.raises(EnvelopeError):
            split(buf + b"!")


@given(st.integers(0, FIXED.size + 30), st.integers(0, 255))
def test_any_byte_changed_gives_a_prefix_or_a_refusal(offset: int, value: int) -> None:
    raw = bytearray(a_prefix())
    raw[offset % len(raw)] = value
    try:
        decode_prefix(bytes(raw))
    except EnvelopeError:
        pass
