"""Every frame of the table: golden bytes, three ways of feeding, the manual page, the fast
paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.errors import ProtocolError
from cipherbox.limits import LIMITS
from cipherbox.wire import codec, document, frames
from cipherbox.wire.connection import (
    AHEAD_BYTES,
    LARGE,
    Deliveries,
    SendBatch,
    State,
    WireConnection,
)
from cipherbox.wire.fields import TABLE
from tests.golden import files
from tests.golden.make_frames import samples

GOLDEN = files.read("frames")


def opened(role: str, peer: str = "admin") -> WireConnection:
    """A connection past its opening; ``peer`` is the role HQ gave."""
    server, client = WireConnection("server"), WireConnection("client")
    server.receive_data(client.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 25, 30, "test")))
    (hello,) = server.events()
    assert isinstance(hello, frames.Hello)
    welcome = frames.Welcome(
        1, 1 << 25, 1 << 24, 30, 10, 1 << 20, 10, 1 << 20, 1, 1, 0, "A", peer, "test"
    )
    client.receive_data(server.send(welcome))
    assert [type(e) for e in client.events()] == [frames.Welcome]
    return server if role == "server" else client


def unbatched(events: list[object]) -> list[object]:
    """Events with the fast paths' tuples turned back into frames."""
    found: list[object] = []
    for event in events:
        if isinstance(event, SendBatch):
            found += [frames.Send(*item) for item in event.items]
        elif isinstance(event, Deliveries):
            found.append(
                frames.Deliver(event.tag, [frames.Delivered(*item) for item in event.entries])
            )
        else:
            found.append(event)
    return found


def receiver_of(kind: int) -> WireConnection:
    return opened("client" if TABLE[kind].sender == "server" else "server")


NAMED = [
    (name, frame)
    for name, frame in samples()
    if not isinstance(frame, frames.Hello | frames.Welcome)
]
IDS = [name for name, _ in NAMED]


@pytest.mark.parametrize("row", GOLDEN, ids=[row["name"] for row in GOLDEN])
def test_golden_frames_keep_their_bytes(row: dict[str, object]) -> None:
    raw = bytes.fromhex(str(row["frame"]))
    frame = codec.decode(raw[4], raw[5:])
    assert files.plain(frame) == row["fields"]
    assert codec.encode(frame) == raw


def test_every_kind_has_a_golden_sample() -> None:
    assert {row["kind"] for row in GOLDEN} == set(TABLE)


def test_the_makers_still_make_the_golden_file() -> None:
    assert [codec.encode(frame).hex() for _, frame in samples()] == [row["frame"] for row in GOLDEN]


@pytest.mark.parametrize(("name", "frame"), NAMED, ids=IDS)
def test_whole_and_byte_by_byte(name: str, frame: object) -> None:
    raw = codec.encode(frame)
    whole = receiver_of(raw[4])
    whole.receive_data(raw)
    assert unbatched(whole.events()) == [frame]

    bitten = receiver_of(raw[4])
    seen: list[object] = []
    for i in range(len(raw)):
        bitten.receive_data(raw[i : i + 1])
        seen += unbatched(bitten.events())
        assert bool(seen) == (i == len(raw) - 1)
    assert seen == [frame]


# A last field of this kind takes everything that comes.
GROWING = [
    (name, frame)
    for name, frame in NAMED
    if TABLE[codec.encode(frame)[4]].fields[-1].kind.name != "rest"
]


@pytest.mark.parametrize(("name", "frame"), GROWING, ids=[name for name, _ in GROWING])
def test_trailing_bytes_of_a_newer_version(name: str, frame: object) -> None:
    raw = codec.encode(frame)
    longer = (len(raw) - 4 + 3).to_bytes(4, "big") + raw[4:] + b"new"
    grown = receiver_of(raw[4])
    grown.receive_data(longer + raw)
    assert unbatched(grown.events()) == [frame, frame]


@pytest.mark.parametrize(("name", "frame"), NAMED, ids=IDS)
def test_every_cut_body_is_refused_in_words(name: str, frame: object) -> None:
    raw = codec.encode(frame)
    least = sum(f.kind.least for f in TABLE[raw[4]].fields)
    ends = _ends_of_older_frames(frame)
    for cut in range(len(raw) - 5):
        if cut >= least and TABLE[raw[4]].fields[-1].kind.name == "rest":
            continue
        if cut in ends:  # as a program sends it that does not know the fields added later
            assert codec.decode(raw[4], raw[5 : 5 + cut])
            continue
        with pytest.raises(ProtocolError, match=r"ends inside|announces"):
            codec.decode(raw[4], raw[5 : 5 + cut])


def _ends_of_older_frames(frame: object) -> set[int]:
    """Where the body of this frame ended before each of its later fields was added."""
    ends, at = set(), 0
    for spec in TABLE[codec.encode(frame)[4]].fields:
        if spec.later is not None:
            ends.add(at)
        out: list[bytes] = []
        spec.kind.put(getattr(frame, spec.name), out)
        at += sum(map(len, out))
    return ends


def test_the_manual_page_is_what_the_table_makes() -> None:
    page = document.PAGE.read_text()
    assert document.refreshed(page) == page
    assert all(f"0x{kind:02X} {spec.name}" in page for kind, spec in TABLE.items())


def test_the_manual_page_is_written_with_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = document.PAGE.read_text("utf-8")
    monkeypatch.setattr(document, "PAGE", tmp_path / "page.md")
    document.PAGE.write_text(page.replace("| 0x", "| 1x"), "utf-8")
    document.main()
    assert document.PAGE.read_text("utf-8") == page


def test_fast_paths_make_the_tables_bytes() -> None:
    sends = [(i, i % 2, 7 * i, bytes([i]) * i) for i in range(5)]
    assert b"".join(codec.encode_sends(sends)) == b"".join(
        codec.encode(frames.Send(*item)) for item in sends
    )
    entries = [(i, 1 + i, 1000 + i, 70 + i, bytes([i]) * i) for i in range(5)]
    assert b"".join(codec.encode_deliver(9, entries)) == codec.encode(
        frames.Deliver(9, [frames.Delivered(*item) for item in entries])
    )


def test_runs_of_send_come_as_one_batch() -> None:
    server = opened("server")
    server.receive_data(
        b"".join(codec.encode_sends([(1, 0, 0, b"a"), (2, 0, 0, b"b")]))
        + codec.encode(frames.Ping(3))
        + b"".join(codec.encode_sends([(4, 1, 5, b"c")]))
    )
    assert server.events() == [
        SendBatch([(1, 0, 0, b"a"), (2, 0, 0, b"b")]),
        frames.Ping(3),
        SendBatch([(4, 1, 5, b"c")]),
    ]


# -- faults ----------------------------------------------------------------------------------------

FAULTS = [
    ("4 GiB", b"\xff\xff\xff\xff", "frame-too-large"),
    ("one byte too large", (17 * 1024 * 1024 + 1).to_bytes(4, "big"), "frame-too-large"),
    ("no length", bytes(4), "protocol"),
    ("unknown kind", b"\x00\x00\x00\x01\xee", "protocol"),
    ("second HELLO", codec.encode(frames.Hello(frames.MAGIC, 2, 2, 1, 1, "")), "unexpected-frame"),
    ("a server's frame", codec.encode(frames.Ok(1, 1)), "unexpected-frame"),
    (
        "a DELIVER from a client",
        b"\x00\x00\x00\x1b\x23" + bytes(4) + b"\xff\xff\xff\xff" + bytes(18),
        "unexpected",
    ),
    (
        "not UTF-8",
        codec.encode(frames.Resolve(1, "ab", "c")).replace(b"ab", b"\xff\xfe"),
        "protocol",
    ),
    ("a flag of 2", codec.encode(frames.Approve(1, "A", True))[:-1] + b"\x02", "protocol"),
]


@pytest.mark.parametrize(("name", "raw", "error"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_raised_behind_the_good_frames_and_for_good(
    name: str, raw: bytes, error: str
) -> None:
    server = opened("server")
    server.receive_data(codec.encode(frames.Ping(1)) + raw)
    assert server.events() == [frames.Ping(1)]
    for _ in range(2):
        with pytest.raises(ProtocolError) as found:
            server.events()
        assert found.value.name.startswith(error)
        assert found.value.closes
    assert server.state is State.CLOSED


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 1000, 2])
def test_a_count_beyond_its_bytes_makes_nothing(claimed: int) -> None:
    body = (1).to_bytes(8, "big") + b"\x01q" + claimed.to_bytes(4, "big") + bytes(12)
    with pytest.raises(ProtocolError, match="announces"):
        codec.decode(0x25, body)
    with pytest.raises(ProtocolError, match="announces"):
        codec.decode_deliver(bytes(44) + claimed.to_bytes(4, "big") + bytes(12), 40, 60)


def test_no_item_reaches_beyond_its_frame() -> None:
    """The bytes after a frame are there, and belong to the next one."""
    head = b"before"
    entries = [(1, 1, 5, 7, b"one" * 20), (2, 1, 6, 8, b"two"), (3, 1, 6, 9, b"")]
    deliver = head + b"".join(codec.encode_deliver(9, entries))[5:]
    send = head + b"".join(codec.encode_sends([(1, 0, 0, b"")]))[5:]
    for raw, decode, empty in ((deliver, codec.decode_deliver, 8), (send, codec.decode_send, 17)):
        whole = decode(raw, len(head), len(raw))
        assert decode(raw + bytes(99), len(head), len(raw)) == whole
        for end in range(len(head), len(raw)):
            words = "ends inside" if end - len(head) < empty else "ends inside|announces"
            for after in (b"", bytes(99)):
                with pytest.raises(ProtocolError, match=words):
                    decode(raw[:end] + after, len(head), end)
    assert codec.decode_deliver(deliver, len(head), len(deliver)) == (9, entries)


def test_what_is_not_large_is_copied_wherever_it_stands() -> None:
    for size in (LARGE - 1, LARGE):
        raw = b"".join(codec.encode_sends([(1, 0, 0, bytes(size))]))[5:]
        body = decoded_at(LARGE, raw)
        assert type(body) is (memoryview if size == LARGE else bytes)
        assert body == bytes(size)


def decoded_at(at: int, raw: bytes) -> codec.Octets:
    """The envelope of a SEND that stands at this offset of a buffer."""
    return codec.decode_send(memoryview(bytes(at) + raw), at, at + len(raw))[3]


def test_an_attempt_beyond_the_field_is_sent_as_its_largest() -> None:
    for attempt, sent in ((0xFFFF, 0xFFFF), (0x10000, 0xFFFF), (1 << 40, 0xFFFF)):
        body = b"".join(codec.encode_deliver(9, [(1, attempt, 5, 7, b"one")]))[5:]
        assert codec.decode_deliver(body, 0, len(body)) == (9, [(1, sent, 5, 7, b"one")])


@pytest.mark.parametrize(
    ("of_length", "most"),
    [
        (lambda n: frames.Resolve(1, "x" * n, ""), 0xFF),
        (lambda n: frames.Nack(1, "q", 1, False, 5, "x" * n), 0xFFFF),
    ],
)
def test_a_text_longer_than_its_length_field_is_refused(
    of_length: Callable[[int], object], most: int
) -> None:
    raw = codec.encode(of_length(most))
    assert codec.decode(raw[4], raw[5:]) == of_length(most)
    with pytest.raises(ProtocolError, match=f"at most {most}"):
        codec.encode(of_length(most + 1))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ProtocolError, match="unknown frame kind 0xee"):
        codec.decode(0xEE, b"")


def test_half_a_frame_and_the_end_is_a_fault() -> None:
    server = opened("server")
    server.receive_data(codec.encode(frames.Ping(1))[:-1])
    assert server.events() == []
    with pytest.raises(ProtocolError, match="middle of a frame"):
        server.receive_eof()
    opened("server").receive_eof()


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        codec.encode(frames.Ping(1)),
        bytes(100),
        codec.encode(frames.Hello(1, 1, 1, 1, 1, "wrong magic")),
    ],
)
def test_what_is_no_hello_is_refused_at_once(first: bytes) -> None:
    server = WireConnection("server")
    server.receive_data(first)
    with pytest.raises(ProtocolError):
        server.events()


def test_hello_is_read_alone_until_welcome() -> None:
    server, client = WireConnection("server"), WireConnection("client")
    server.receive_data(
        client.send(frames.Hello(frames.MAGIC, 2, 2, 1, 1, "")) + codec.encode(frames.Ping(5))
    )
    assert len(server.events()) == 1
    assert server.events() == []
    server.send(frames.Welcome(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, "A", "client", ""))
    assert server.events() == [frames.Ping(5)]


def test_an_anonymous_connection_can_only_enrol() -> None:
    server = opened("server", "anonymous")
    server.receive_data(codec.encode(frames.GetRoot(1)) + codec.encode(frames.Ping(2)))
    assert len(server.events()) == 2
    for frame in (
        frames.Fetch(3, "q", 1, 1),
        frames.Send(3, 0, 0, b""),
        frames.Enrol(3, "A", "admin", False, 0),
    ):
        server = opened("server", "anonymous")
        server.receive_data(codec.encode(frame))
        with pytest.raises(ProtocolError, match="certificate"):
            server.events()
    server = opened("server", "anonymous")
    server.receive_data((16 * 1024 + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="announces"):
        server.events()


def test_a_client_cannot_send_an_admins_frame() -> None:
    server = opened("server", "client")
    server.receive_data(codec.encode(frames.Grant(1, "A", "admin", "", True)))
    with pytest.raises(ProtocolError):
        server.events()


def test_versions_without_a_common_one() -> None:
    from cipherbox.wire.connection import negotiate

    for low, high in ((0, 9), (2, 2), (0, 2), (2, 9)):
        assert negotiate(frames.Hello(frames.MAGIC, low, high, 1, 1, "")) == 2
    for low, high in ((3, 9), (0, 0), (1, 1)):
        with pytest.raises(
            ProtocolError, match=r"update the older program, HQ first \(cipherbox manual migrate\)"
        ):
            negotiate(frames.Hello(frames.MAGIC, low, high, 1, 1, ""))


@pytest.mark.parametrize(("announced", "most"), [(1 << 25, 1 << 25), (1, LIMITS.first_frame_bytes)])
def test_frames_are_as_large_as_hello_announced(announced: int, most: int) -> None:
    server = WireConnection("server")
    server.receive_data(codec.encode(frames.Hello(frames.MAGIC, 2, 2, announced, 30, "test")))
    server.events()
    server.send(frames.Welcome(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, "A", "admin", ""))
    empty = len(codec.encode(frames.Requests(1, b""))) - 4
    server.send(frames.Requests(1, bytes(most - empty)))
    with pytest.raises(ProtocolError, match=f"the peer accepts at most {most}"):
        server.send(frames.Requests(1, bytes(most - empty + 1)))


def test_only_an_opening_is_sent_before_the_connection_is_open_and_nothing_after_its_end() -> None:
    client = WireConnection("client")
    with pytest.raises(ProtocolError, match="cannot send PING: the connection is not open yet"):
        client.send(frames.Ping(1))
    client.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 25, 30, "test"))
    client = opened("client")
    client.receive_eof()
    for frame in (frames.Ping(1), frames.Error(0, 1, False, "", b"")):
        with pytest.raises(ProtocolError, match="the connection is closed"):
            client.send(frame)


def test_an_error_before_welcome_closes_the_clients_end_alone() -> None:
    error = frames.Error(0, 0x0101, False, "no", b"")
    client = WireConnection("client")
    client.receive_data(codec.encode(error))
    assert client.events() == [error]
    assert client.state is State.CLOSED
    later = opened("client")
    later.receive_data(codec.encode(error))
    assert later.events() == [error]
    assert later.state is State.OPEN


@pytest.mark.parametrize(
    ("connection", "when"),
    [(WireConnection("server"), "before the connection is open"), (opened("server"), "now")],
)
def test_a_refused_frame_says_when(connection: WireConnection, when: str) -> None:
    connection.receive_data(codec.encode(frames.Ok(1, 1)))
    with pytest.raises(ProtocolError, match=f"may not send OK {when}"):
        connection.events()


def test_what_the_other_end_cannot_take_is_not_sent() -> None:
    server = opened("server")
    with pytest.raises(ProtocolError, match="accepts"):
        server.send(frames.Requests(1, bytes(1 << 25)))


@given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from(["server", "client", "new"]))
def test_any_bytes_give_frames_or_a_fault(pieces: list[bytes], role: str) -> None:
    connection = WireConnection("server") if role == "new" else opened(role)
    try:
        for piece in pieces:
            connection.receive_data(piece)
            connection.events()
        connection.events()
    except ProtocolError:
        pass


@given(st.sampled_from(sorted(TABLE)), st.binary(max_size=200))
def test_decoding_any_body_is_total(kind: int, body: bytes) -> None:
    try:
        frame = codec.decode(kind, body)
    except ProtocolError:
        return
    codec.encode(frame)


@pytest.mark.parametrize("step", [1_000, 65_536, LARGE, LARGE + 4, 10 * LARGE])
@pytest.mark.parametrize("direct", [False, True])
def test_large_frames_come_whole_however_they_are_cut(step: int, direct: bool) -> None:
    bodies = [b"a", bytes(range(256)) * 1024 + b"!", b"b" * (2 * LARGE), b"c", b"d" * LARGE]
    bodies.insert(1, bytes(range(256)) * (3 * AHEAD_BYTES // 256 + 7))  # grows, and again
    data = b"".join(codec.encode_sends([(n + 1, 0, 0, body) for n, body in enumerate(bodies)]))
    server, got, at = opened("server"), [], 0
    while at < len(data):
        room = server.wanted() if direct else None
        size = min(step, len(data) - at, len(room) if room is not None else step)
        if room is None:
            server.receive_data(data[at : at + size])
        else:
            room[:size] = data[at : at + size]
            room.release()
            server.filled(size)
        at += size
        got += [item[3] for event in server.events() for item in event.items]
    assert got == bodies
    for body in got:  # what is large is a view of the frame's own buffer, which nobody can change
        own = isinstance(body, memoryview) and body.readonly and body.nbytes >= LARGE
        assert own or type(body) is bytes
    assert step > 2 * LARGE or type(got[3]) is memoryview
    server.receive_eof()


def test_a_length_that_is_announced_costs_nothing() -> None:
    """Memory follows what has come: 13 bytes that announce 16 MiB hold 13 bytes, and single
    bytes are joined.
    """
    server = opened("server")
    announced = (1 << 24).to_bytes(4, "big") + b"\x02" + bytes(8)
    server.receive_data(announced)
    assert server.events() == []
    assert server.wanted() is None
    assert server.coming == (len(announced), (1 << 24) + 4)
    for _ in range(3000):
        server.receive_data(b"x")
        assert server.events() == []
    assert len(server._pieces) <= 257
    server.receive_data(bytes(LARGE))
    room = server.wanted()
    assert room is not None
    assert len(room) == AHEAD_BYTES
    room.release()
    assert server.coming == (len(announced) + 3000 + LARGE, (1 << 24) + 4)


def test_a_cut_inside_a_large_frame_is_a_fault() -> None:
    server = opened("server")
    server.receive_data(b"".join(codec.encode_sends([(1, 0, 0, bytes(2 * LARGE))]))[:-1])
    assert server.events() == []
    with pytest.raises(ProtocolError):
        server.receive_eof()


def test_a_fault_behind_a_large_frame_comes_after_it() -> None:
    server = opened("server")
    server.receive_data(b"".join(codec.encode_sends([(1, 0, 0, bytes(2 * LARGE))]))[:-1])
    assert server.events() == []
    server.receive_data(b"\x00" + b"\x00\x00\x00\x00")
    assert len(server.events()) == 1
    with pytest.raises(ProtocolError):
        server.events()


def test_a_large_envelope_is_sent_as_it_is() -> None:
    small, large = bytes(100), memoryview(bytes(LARGE))
    items = [(1, 0, 0, small), (2, 0, 0, large), (3, 0, 0, small), (4, 0, 0, small)]
    pieces = codec.encode_sends(items)
    assert [len(piece) for piece in pieces] == [122 + 22, LARGE, 2 * 122]
    assert pieces[1] is large
    assert codec.encode_deliver(1, [(1, 1, 5, 7, large)])[1] is large


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12),
    takes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_pieces_are_taken_in_slices(sizes: list[int], takes: list[int]) -> None:
    parts = [bytes([n]) * size for n, size in enumerate(sizes)]
    pieces, got, n = codec.Pieces(parts), [], 0
    pieces._left.clear()
    pieces._left.extend(part for part in parts if part)  # without the join of small ones
    while pieces.size:
        most = takes[n % len(takes)]
        got.append(bytes(pieces.take(most)))
        assert 0 < len(got[-1]) <= most + most // 8
        n += 1
    assert b"".join(got) == b"".join(parts)


def test_what_a_frame_lacks_is_known_once_its_length_is() -> None:
    server = opened("server")
    (data,) = codec.encode_sends([(1, 0, 0, bytes(2000))])
    assert server.missing == 0
    for at in range(len(data)):
        server.receive_data(data[at : at + 1])
        events = server.events()
        assert server.missing == (len(data) - at - 1 if at >= 4 else 0)
    assert events
    assert server.missing == 0
