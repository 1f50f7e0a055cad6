"""What one sender's envelopes cost the recipient in memory at most, whatever they are made of."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from cipherbox.client.inbox.lines import Received, lines_of
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import HEADERS, LAYOUT, Message, pack
from tests import soak
from tests.client.attacker import crafted, submit
from tests.client.memory import MOST_BYTES, Memory
from tests.client.real_hq import real_hq

MOST = LIMITS.envelope_bytes - 4096  # of a plaintext
MANY = LIMITS.messages - 1


@pytest.fixture
async def hq(tmp_path: Path) -> AsyncIterator[Any]:
    async with real_hq(tmp_path) as found:
        await found.join("CA-RC", "BAD-LAB")
        yield found


def many_headers(count: int = MANY) -> bytes:
    """32 different ones for each message."""
    one = bytes([32]) + b"".join(b"\x02%02x\x00\x02xy" % number for number in range(32))
    one = len(one).to_bytes(2, "big") + one
    head = struct.pack(">BBI", LAYOUT, HEADERS, count) + os.urandom(32) + bytes(4 * count)
    return head + b"\x0atext/plain" + one * count


def a_quarter_of_many_headers() -> bytes:
    """Reading all of them takes seconds; a quarter may cost a quarter."""
    return many_headers(MANY // 4)


def many_types() -> bytes:
    return pack([Message(b"", f"text/{'a' * 180}\U0001f600{number}") for number in range(MANY)])


def control_characters() -> bytes:
    """Six times as long as JSON; one character of four bytes makes all of a text take four bytes
    each.
    """
    return pack([Message(b"\x01" * (MOST - 100) + "\U0001f600".encode(), "text/plain")])


def many_control_characters() -> bytes:
    return pack([Message(b"\x01" * (MOST // MANY - 8), "text/plain")] * MANY)


def many_headers_of_control_characters() -> bytes:
    """Six times as long as JSON as well, and no file can take them."""
    return pack(
        [Message(b"", "text/plain", {str(n): "\x01" * 4000 for n in range(15)})] * (MOST // 60_500)
    )


def many_short_texts() -> bytes:
    return pack([Message(b"a" * (MOST // MANY - 8), "text/plain")] * MANY)


def one_file() -> bytes:
    return pack([Message(os.urandom(MOST - 4096))])


SHAPES = [
    a_quarter_of_many_headers,
    control_characters,
    many_short_texts,
    one_file,
    *(
        pytest.param(one, marks=soak.only)
        for one in (
            many_headers,
            many_types,
            many_control_characters,
            many_headers_of_control_characters,
        )
    ),
]
# three times as long as lines
REFUSED = {many_control_characters, many_headers_of_control_characters}
MOST_OF: dict[Callable[[], bytes], int] = {a_quarter_of_many_headers: MOST_BYTES // 4}


@pytest.mark.parametrize("make", SHAPES)
async def test_no_envelope_costs_more_than_its_share(hq: Any, make: Callable[[], bytes]) -> None:
    async with hq.client("BAD-LAB", renew=False) as bad, hq.client("CA-RC") as center:
        plain = make()
        count = int.from_bytes(plain[2:6], "big")
        await submit(bad, await crafted(bad, ["CA-RC"], plain, count=count))
        del plain
        (delivery,) = await center.fetch_unopened("box.CA-RC", 1)
        receiver, memory = Receiver(center), Memory()
        await receiver.take([delivery])
        taken = make not in REFUSED
        assert (receiver.received, receiver.refused) == (count * taken, 1 - taken)
        assert memory.most() < MOST_OF.get(make, MOST_BYTES), memory.most()


@pytest.mark.parametrize(
    "make",
    [
        many_short_texts,
        *(
            pytest.param(one, marks=soak.only)
            for one in (many_control_characters, many_types, control_characters, one_file)
        ),
    ],
)
async def test_large_envelopes_in_all_mailboxes_at_once_cost_no_more(
    hq: Any, make: Callable[[], bytes]
) -> None:
    """Two senders, two envelopes in each of three mailboxes: of each all that HQ may hand out
    before one is done.
    """
    Memory()  # or it is skipped
    await hq.join("BAD-CLINIC")
    plain = make()
    count = int.from_bytes(plain[2:6], "big")
    async with (
        hq.client("BAD-LAB", renew=False) as lab,
        hq.client("BAD-CLINIC", renew=False) as clinic,
    ):
        for box in (".sys", ".bulk", ""):
            for bad in (lab, clinic):
                await submit(
                    bad, await crafted(bad, ["CA-RC"], plain, count=count, routing_key=box)
                )
    recipient = [sys.executable, "-m", "tests.client.recipient", str(hq.home("CA-RC")), "4"]
    said = orjson.loads((await trio.run_process(recipient, capture_stdout=True)).stdout)
    assert (said["recorded"], said["refused"]) == ((0, 4) if make in REFUSED else (4, 0))
    assert said["most"] < MOST_BYTES, said


def test_a_long_text_of_control_characters_becomes_a_file() -> None:
    one, short = Message(b"\x01" * 300_000, "text/plain"), Message(b"\x01" * 200_000, "text/plain")
    assert lines_of(Received("FL-LAB", bytes(16), 0, "box.CA-RC", 1, 1, [one, short])).files == [0]


@pytest.mark.parametrize("size", [200, 300 * 1024])
@pytest.mark.parametrize("text", ['abcd\x01"\\\n', "\u00e4\u2028\U0001f600", 'content":"'])
def test_a_long_text_gets_the_line_that_a_short_one_gets(size: int, text: str) -> None:
    text *= size // len(text.encode())
    said = Message(text.encode(), "text/plain", {"x": '"content":"', "y": ""})
    (line,) = lines_of(
        Received("FL-LAB", bytes(16), 0, "box.CA-RC", 1, 1, [said])
    ).data.splitlines()
    document = {
        "message_id": "00000000-0000-0000-0000-000000000000",
        "sender_id": "FL-LAB",
        "sent_timestamp": "1970-01-01T00:00:00.001Z",
        "content": text,
        "headers": said.headers,
    }
    assert line == orjson.dumps(document)


def test_a_long_text_that_ends_in_no_text_becomes_a_file_and_leaves_no_line() -> None:
    long = b"a" * 600_000 + b"\xff"
    found = lines_of(
        Received(
            "FL-LAB",
            bytes(16),
            0,
            "box.CA-RC",
            1,
            1,
            [
                Message(b"before", "text/plain"),
                Message(long, "text/plain"),
                Message(b"behind", "text/plain"),
            ],
        )
    )
    assert [orjson.loads(line)["content"] for line in found.data.splitlines()] == [
        "before",
        "behind",
    ]
    assert found.files == [1]
