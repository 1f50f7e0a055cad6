"""Bodies: round trips, limits, and what is not a body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.errors import InvalidRequest, MalformedEnvelope
from cipherbox.sealing.body import Message, pack, pack_contents, salted, text_message, unpack
from tests.golden.make_envelopes import MESSAGES


@given(
    st.lists(
        st.builds(
            Message,
            st.binary(max_size=40),
            st.text(max_size=20),
            st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9), max_size=4),
            st.none() | st.integers(1, 2**63),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_bodies_round_trip(messages: list[Message]) -> None:
    back = unpack(pack(messages), len(messages), 77)
    for sent, got in zip(messages, back, strict=True):
        assert got.content == sent.content
        assert got.headers == sent.headers
        assert got.sent_at == (sent.sent_at or 77)
        assert got.content_type == sent.content_type


@given(st.binary(max_size=200), st.integers(1, 65_536))
def test_any_plaintext_is_messages_or_refused(plain: bytes, count: int) -> None:
    for buf in (
        plain,
        b"\x01\x07" + count.to_bytes(4, "big") + plain,
        b"\x02\x07" + count.to_bytes(4, "big") + plain,
    ):
        try:
            unpack(buf, count, 0)
        except MalformedEnvelope:
            pass


def test_the_fast_way_of_packing_makes_the_same_bytes() -> None:
    contents = [b"a", b"", b"ccc"]
    one, two = pack_contents(contents, "x/y"), pack([Message(c, "x/y") for c in contents])
    assert (one[:6], one[38:]) == (two[:6], two[38:])
    assert one[6:38] != two[6:38]  # a salt of its own


def test_a_body_of_the_first_layout_gets_a_salt_and_holds_the_same() -> None:
    plain = pack(MESSAGES)
    first = b"\x01" + plain[1:6] + plain[38:]
    again = salted(first)
    assert (again[:6], again[38:]) == (plain[:6], plain[38:])
    assert again[6:38] != plain[6:38]
    assert unpack(first, len(MESSAGES), 7) == unpack(again, len(MESSAGES), 7)
    assert salted(plain) is plain


@pytest.mark.parametrize(
    "bad",
    [
        Message(b"", "t" * 256),
        Message(b"", "", {"": "v"}),
        Message(b"", "", {"k" * 256: "v"}),
        Message(b"", "", {"k": "v" * 4097}),
        Message(b"", "", {str(i): "" for i in range(33)}),
        Message(b"", "", {str(i): "v" * 4096 for i in range(16)}),
        Message(b"", "\ud800"),
        Message(b"", "", {"\ud800": ""}),
        Message(b"", "", {"k": "\ud800"}),
        Message(b"", sent_at=-1),
        Message(b"", sent_at=2**64),
    ],
)
def test_limits_of_a_message_one_over(bad: Message) -> None:
    with pytest.raises(InvalidRequest):
        pack([bad])
    pack([Message(b"", "t" * 255, {"k" * 255: "v" * 4096, **{str(i): "" for i in range(31)}})])


def test_numbers_of_messages_one_over() -> None:
    for contents in ([], [b""] * 65_537):
        with pytest.raises(InvalidRequest):
            pack_contents(contents)
    assert len(unpack(pack_contents([b""] * 65_536), 65_536, 1)) == 65_536


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        text_message("\udfff")


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"a", b"1"), (b"a", b"2")],
        [(b"", b"1")],
        [(b"a", b"v" * 4097)],
        [(str(i).encode(), b"") for i in range(33)],
        [(b"\xff", b"")],
        [(b"a", b"\xff")],
    ],
)
def test_headers_that_a_sender_may_not_make_are_not_taken(pairs: list[tuple[bytes, bytes]]) -> None:
    """What one reader takes and another does not would be two texts of one envelope."""
    encoded = bytes([len(pairs)]) + b"".join(
        bytes([len(k)]) + k + len(v).to_bytes(2, "big") + v for k, v in pairs
    )
    head = bytes.fromhex("0104 00000001 00000000 00") + len(encoded).to_bytes(2, "big")
    with pytest.raises(MalformedEnvelope):
        unpack(head + encoded, 1, 0)


def test_the_number_of_messages_is_the_prefixs() -> None:
    """Both readings of these bytes would match their length."""
    plain = bytes.fromhex("0100 00000002 00000002 00000000 00") + b"xy"
    assert [m.content for m in unpack(plain, 2, 0)] == [b"xy", b""]
    with pytest.raises(MalformedEnvelope, match="prefix says"):
        unpack(bytes.fromhex("0100 00000002 00000001 00") + b"x", 1, 0)


def test_headers_fill_their_length() -> None:
    for size in (8, 10):
        plain = bytes.fromhex("0104 00000001 00000000 00") + size.to_bytes(2, "big")
        pair = bytes.fromhex("02 01610000 01620000")
        with pytest.raises(MalformedEnvelope, match="match their length"):
            unpack(plain + pair + bytes(size - 9 if size > 9 else 0), 1, 0)


def test_every_cut_of_a_body_is_refused() -> None:
    plain = pack(MESSAGES)
    for size in range(len(plain)):
        with pytest.raises(MalformedEnvelope):
            unpack(plain[:size], 3, 0)


def test_a_type_that_several_have_is_written_once() -> None:
    text, other = Message(b"a", "text/plain"), Message(b"b", "application/json")
    raw = pack([text, text, other, text])
    assert (raw.count(b"text/plain"), raw.count(b"application/json")) == (1, 1)
    for messages in ([text, text, other, text], [text, Message(b"c", ""), other]):
        found = unpack(pack(messages), len(messages), 0)
        assert [one.content_type for one in found] == [one.content_type for one in messages]
