"""The lines of a batch are the same whether they are made all at once or one by one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.client.inbox.lines import Received, lines_of
from cipherbox.sealing.body import TEXT, Message, pack, unpack

ENVELOPE = bytes.fromhex("019a8c3e0b1e70008000012345670000")


def received(messages: Any) -> Received:
    return Received("FL-LAB", ENVELOPE, 0, "box.CA-RC", 5, 1_760_000_000_000, messages)


def both_ways(messages: list[Message]) -> bytes:
    unpacked = unpack(pack(messages), len(messages), 1_760_000_000_000)
    made = lines_of(received(unpacked))
    assert made == lines_of(received(list(unpacked)))
    assert len(made.data.splitlines()) + len(made.files) == len(messages)
    return made.data


@given(st.lists(st.one_of(st.text(max_size=9), st.text("abc", max_size=9)), min_size=1, max_size=9))
def test_text_of_every_kind(texts: list[str]) -> None:
    encodable = [t.encode("utf-8", "replace") for t in texts]
    lines = [
        json.loads(line)
        for line in both_ways([Message(t, TEXT) for t in encodable]).split(b"\n")[:-1]
    ]
    assert [line["content"] for line in lines] == [t.decode() for t in encodable]
    assert [line["message_id"][-4:] for line in lines] == [f"{n:04x}" for n in range(len(texts))]
    assert {line["sender_id"] for line in lines} == {"FL-LAB"}


@pytest.mark.parametrize(
    ("messages", "texts"),
    [
        ([Message(b"plain", TEXT), Message(b"of bytes")], 1),
        ([Message(b"plain", TEXT), Message(b"with a header", TEXT, {"k": "v"})], 2),
        ([Message(b"plain", TEXT), Message(b"a,b", "text/csv", {"filename": "results.csv"})], 1),
        ([Message(b"plain", TEXT), Message(b"with a time", TEXT, {}, 1_700_000_000_000)], 2),
        # together they are UTF-8, each alone is not
        ([Message(b"\xc3", TEXT), Message(b"\xa4", TEXT)], 0),
        ([Message(b"not text"), Message(b"not text either")], 0),
    ],
)
def test_what_is_not_of_one_kind(messages: list[Message], texts: int) -> None:
    lines = both_ways(messages).splitlines()
    assert len(lines) == texts
    assert all(
        json.loads(line)["message_id"].startswith("019a8c3e-0b1e-7000-8000-01234567")
        for line in lines
    )


def test_as_many_as_an_envelope_holds() -> None:
    lines = both_ways([Message(b"x", TEXT)] * 65_536).splitlines()
    assert len(set(lines)) == 65_536
    assert json.loads(lines[-1])["message_id"].endswith("ffff")


@pytest.mark.parametrize("before", range(4))
def test_a_long_text_is_written_whole_wherever_its_pieces_end(before: int) -> None:
    text = "x" * before + "\u20ac" * 200_000 + "\U0001f600"
    (line,) = both_ways([Message(text.encode(), TEXT)]).splitlines()
    assert json.loads(line)["content"] == text


def test_a_long_text_that_ends_inside_a_character_is_no_text() -> None:
    raw = ("\u20ac" * 200_000).encode()[:-1]
    made = lines_of(received([Message(raw, TEXT)]))
    assert (made.data, made.files) == (b"", [0])
