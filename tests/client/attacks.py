"""What a dishonest sender may do, as Hypothesis draws it: each attack shows all it is made of,
and shrinks.
"""

from __future__ import annotations

import functools
from typing import Any

import attrs
import orjson
import zstandard
from hypothesis import strategies as st

from cipherbox.client.publishing.parts import (
    MANIFEST,
    PART,
    manifest_message,
    manifest_of,
    part_message,
)
from cipherbox.sealing.body import Message
from cipherbox.wire import codec, frames
from tests.client import traps
from tests.golden.make_frames import samples

MIB = 1024 * 1024
LAST = 2**64 - 1
RECEIPTS, STEP = "application/vnd.cipherbox.receipts", "application/vnd.cipherbox.session-step"
HUGE = 320  # MiB: more than a recipient may take in memory altogether


@functools.cache
def bomb(mib: int) -> bytes:
    """So many zeros, in some kilobytes."""
    made = zstandard.ZstdCompressor(level=1).compressobj()
    block = bytes(8 * MIB)
    return b"".join(made.compress(block) for _ in range(mib // 8)) + made.flush()


FRAMES = {
    name: codec.encode(frame) for name, frame in samples() if not isinstance(frame, frames.Hello)
}

names = st.sampled_from(
    [
        "",
        "..",
        "../../x",
        "a" * 300,
        "CON",
        "\x00",
        "x/y/z",
        "\u202egnp.exe",
        ".partial",
        "data",
        "\xe4" * 120,
    ]
) | st.text(max_size=40)
numbers = st.sampled_from(["0", "1", "-1", "9" * 40, "nan", "", "\u0663"]) | st.integers(
    -1, 2**64
).map(str)
integers = st.sampled_from([-1, 0, 1, 5, 2**31, 2**63, 2**64 - 1, 253_402_300_799_999])
times = st.none() | integers.filter(lambda at: at >= 0)
short = st.binary(max_size=60)
types = st.sampled_from(
    [
        "",
        "text/plain",
        "application/json",
        "application/octet-stream",
        "text/x-chat; charset=utf-8",
        "x" * 255,
        RECEIPTS,
        STEP,
        "application/vnd.cipherbox.pipe",
        PART,
        MANIFEST,
    ]
) | st.text(max_size=20)
headers = st.dictionaries(
    st.sampled_from(
        ["filename", "part", "transfer", "part_bytes", "encoding", "chat", "modified_at", "x"]
    ),
    names | numbers | st.just("zstd"),
    max_size=4,
)


@functools.lru_cache(4)  # forty of one share it: this process's memory is what is looked at
def _content(text: bytes, repeat: int, mib: int, cut: int) -> bytes:
    raw = bomb(mib) if mib else text * repeat
    return raw[: len(raw) - cut]


@attrs.frozen
class Said:
    """A message: a content ``repeat`` times, and never a large one, which would be shown when it
    fails.

    ``bomb``: so many MiB of zeros instead, compressed; ``cut`` at its end.
    """

    text: bytes
    content_type: str = "text/plain"
    headers: dict[str, str] = attrs.Factory(dict)
    sent_at: int | None = None
    repeat: int = 1
    bomb: int = 0
    cut: int = 0

    @property
    def content(self) -> bytes:
        return _content(self.text, self.repeat, self.bomb, self.cut)

    def message(self) -> Message:
        return Message(self.content, self.content_type, self.headers, self.sent_at)


@attrs.frozen
class Envelope:
    """A signed envelope.

    ``damage``: (place, bytes) written over the plaintext before it is sealed; ``forge``: over the
    sealed bytes, which are then signed again if ``resign``.  ``back``: with the id of so many
    envelopes before.  ``session``: sealed in the session with the recipient.  ``times``: so many of
    them, each with an id (and unknown keys) of its own.
    """

    messages: tuple[Said, ...]
    box: str = ""
    damage: tuple[int, bytes] | None = None
    forge: tuple[int, bytes] | None = None
    resign: bool = False
    unknown_keys: bool = False
    generation: int = 0
    sealed_at: int | None = None
    back: int = 0
    session: bool = False
    times: int = 1


@attrs.frozen
class Receipt:
    """A signed receipt for what the recipient has sent: ``leaves`` of them with that outcome.

    ``foreign``: for envelopes of somebody else.  ``unknown_keys``: it names keys that nobody has.
    ``head``: in place of the newest head of HQ's log.
    """

    outcome: int
    messages: tuple[int, ...]
    at: int
    generation: int
    leaves: int
    foreign: bool
    unknown_keys: bool
    head: bytes
    patch: tuple[int, bytes] | None


@attrs.frozen
class Replay:
    """The same bytes again, of so many envelopes before."""

    back: int


@attrs.frozen
class File:
    """A part and the manifest that fits it, each in an envelope of its own; the manifest first if
    ``swapped``.

    ``over``: another part of the same file, (number, part size, content), that comes after the
    first or before it. ``lacks``: the right part never comes.
    """

    transfer: bytes
    path: tuple[str, ...]
    content: bytes
    modified_at: int
    content_type: str
    compress: bool
    part_bytes: int
    swapped: bool
    over: tuple[int, int, bytes] | None
    before: bool
    lacks: bool

    def envelopes(self) -> list[Envelope]:
        one = manifest_of(
            self.transfer, self.path, self.content, self.content_type, self.modified_at
        )
        one = attrs.evolve(one, part_bytes=self.part_bytes)
        right = part_message(
            self.transfer, 0, self.part_bytes, self.content, compress=self.compress
        )
        made: list[Message] = [] if self.lacks else [right]
        if self.over is not None:
            number, part_bytes, content = self.over
            other = part_message(
                self.transfer, number, part_bytes, content[:part_bytes], compress=False
            )
            made.insert(0 if self.before else 1, other)
        made.insert(0 if self.swapped else len(made), manifest_message(one))
        return [Envelope((Said(m.content, m.content_type, m.headers),), ".bulk") for m in made]


@attrs.frozen
class RawFrame:
    """A frame of the table, or nearly."""

    name: str
    patch: tuple[int, bytes] | None

    def raw(self) -> bytes:
        raw = FRAMES[self.name]
        return raw if self.patch is None else raw[:5] + over(raw[5:], self.patch)


@attrs.frozen
class Bundle:
    """The next bundle of the same keys; with ``patch`` it is none."""

    patch: tuple[int, bytes] | None


@attrs.frozen
class Trap:
    """Something of the dishonest one, and an error that nobody thought of where it is taken in:
    see `traps`.
    """

    place: str
    error: str


def over(raw: bytes, patch: tuple[int, bytes]) -> bytes:
    """Other bytes in one place, which is taken modulo the length."""
    at = patch[0] % max(1, len(raw))
    return (raw[:at] + patch[1] + raw[at + len(patch[1]) :])[: max(len(raw), at)]


def _part(content: Said, values: dict[str, str], more: dict[str, str]) -> Said:
    return attrs.evolve(content, content_type=PART, headers={**values, **more})


def _manifest(document: Any) -> Said:
    return Said(orjson.dumps(document), MANIFEST)


contents = short.map(Said) | st.sampled_from(
    [
        Said(b"", bomb=8),
        Said(b"", bomb=8, cut=3),
        Said(b"", bomb=HUGE),
        Said(b""),
        Said(b"\xff", repeat=40),
        Said(b"\x01", repeat=5000),
        Said(b"\x01", repeat=MIB),
        Said("\u2028\U0001f600".encode(), repeat=50),
    ]
)
parts = st.builds(
    _part,
    contents,
    st.fixed_dictionaries(
        {
            "transfer": st.binary(min_size=16, max_size=16).map(bytes.hex),
            "part": numbers,
            "part_bytes": st.sampled_from([str(8 * MIB), "1", "60"]) | numbers,
            "encoding": st.sampled_from(["", "zstd"]),
        }
    ),
    headers,
)
odd = st.none() | integers | names | st.lists(names | st.none(), max_size=3) | st.just(1e300)
documents = st.fixed_dictionaries(
    {
        "transfer": st.binary(min_size=16, max_size=16).map(bytes.hex) | odd,
        "path": st.lists(names, max_size=3) | odd,
        "size": integers | odd,
        "part_bytes": integers | odd,
        "parts": st.sampled_from(["", "00" * 32, "zz"]) | odd,
        "modified_at": integers | odd,
        "content_type": types | odd,
    },
    optional={
        "version": integers | odd,
        "entries": odd | st.lists(st.tuples(names, integers, integers), max_size=3),
    },
)
broken = st.sampled_from([b"[" * 2000, b"null", b"{}"])
manifests = documents.map(_manifest) | broken.map(lambda raw: Said(raw, MANIFEST))
messages = (
    parts
    | manifests
    | st.builds(
        lambda content, kind, more, sent_at: attrs.evolve(
            content, content_type=kind, headers=more, sent_at=sent_at
        ),
        contents,
        types,
        headers,
        times,
    )
)
bodies = st.lists(messages, min_size=1, max_size=3).map(tuple) | messages.map(
    lambda one: (one,) * 40
)
patches = st.none() | st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=8))

often = st.sampled_from([False] * 3 + [True])
boxes = st.sampled_from(["", ".bulk", ".sys"])
envelopes = st.builds(
    Envelope,
    bodies,
    boxes,
    patches,
    patches,
    st.booleans(),
    often,
    st.sampled_from([0, 0, 0, 1, 2**32 - 1]),
    st.none() | integers.filter(lambda at: at >= 0),
    st.sampled_from([0, 0, 0, 1, 2]),
)
plain_envelopes = st.builds(Envelope, bodies, boxes)
# What is nearly right comes further than what is wrong in many ways.
bombs = st.builds(
    lambda content, transfer, number, size: _part(
        content,
        {"transfer": transfer, "part": str(number), "part_bytes": str(size), "encoding": "zstd"},
        {},
    ),
    st.sampled_from([Said(b"", bomb=8), Said(b"", bomb=HUGE)]),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.integers(0, 3),
    st.sampled_from([8 * MIB, 60]),
)
bulk = st.builds(Envelope, (bombs | parts | manifests).map(lambda one: (one,)), st.just(".bulk"))
sessions = st.builds(
    Envelope, bodies, st.just(""), patches, patches, st.booleans(), session=st.just(True)
)
floods = st.builds(
    lambda text, box, forged, unknown, session: Envelope(
        (Said(text),),
        box,
        None,
        (2000, b"?") if forged else None,
        unknown_keys=unknown,
        session=session,
        times=40,
    ),
    short,
    boxes,
    st.booleans(),
    st.booleans(),
    often,
)
files = st.builds(
    File,
    st.binary(min_size=16, max_size=16),
    st.lists(names, min_size=1, max_size=4).map(tuple),
    st.binary(min_size=1, max_size=60),
    integers.map(abs),
    types,
    st.booleans(),
    st.sampled_from([60, 100, 8 * MIB]),
    st.booleans(),
    st.none()
    | st.tuples(
        st.sampled_from([0, 1, 5]), st.sampled_from([1, 7, 60]), st.binary(min_size=1, max_size=60)
    ),
    st.booleans(),
    often,
)
receipts = st.builds(
    Receipt,
    st.integers(0, 20),
    st.just(()) | st.lists(st.integers(0, 20), max_size=3).map(tuple),
    integers.filter(lambda at: at >= 0),
    st.sampled_from([0, 0, 1, 2**31]),
    st.sampled_from([1, 2, 300]),
    often,
    often,
    st.sampled_from([b"", b"", b"no checkpoint\n", b"\xff" * 500]),
    patches,
)
attacks = st.one_of(
    plain_envelopes,
    envelopes,
    files,
    files,
    bulk,
    receipts,
    sessions,
    floods,
    st.builds(Replay, st.integers(1, 4)),
    envelopes,
    st.builds(Bundle, patches),
    st.builds(RawFrame, st.sampled_from(sorted(FRAMES)), patches),
    st.builds(Trap, st.sampled_from(sorted(traps.PLACES)), st.sampled_from(sorted(traps.ERRORS))),
)


def file(transfer: int, *path: str, **more: Any) -> File:
    values: dict[str, Any] = {
        "modified_at": 0,
        "content_type": "text/csv",
        "compress": False,
        "part_bytes": 100,
        "swapped": False,
        "over": None,
        "before": False,
        "lacks": False,
        **more,
    }
    return File(transfer.to_bytes(16, "big"), path, b"content %d" % transfer, **values)


def _bomb(mib: int, part: int, cut: int = 0) -> Envelope:
    values = {
        "transfer": "bb" * 16,
        "part": str(part),
        "part_bytes": str(8 * MIB),
        "encoding": "zstd",
    }
    return Envelope((_part(Said(b"", bomb=mib, cut=cut), values, {}),), ".bulk")


def _manifest_of(raw: bytes) -> Envelope:
    return Envelope((Said(raw, MANIFEST),), ".bulk")


def receipt(**more: Any) -> Receipt:
    values: dict[str, Any] = {
        "outcome": 0,
        "messages": (),
        "at": 1,
        "generation": 0,
        "leaves": 1,
        "foreign": False,
        "unknown_keys": False,
        "head": b"",
        "patch": None,
        **more,
    }
    return Receipt(**values)


TEXT = Said(b"text")
# What is tried in every run, since chance alone finds it too seldom: (attacks, what the honest one
# sends, a new start).
KNOWN: list[tuple[list[Attack], str, bool]] = [
    ([file(1, "results"), file(2, "results", "results"), file(3, "results")], "message", False),
    (
        [file(4, "../../x"), file(5, "\x00"), file(6, *["a" * 300] * 4), file(7, "..", "/etc/x")],
        "file",
        False,
    ),
    (
        [file(8, "lacks its part", lacks=True), file(9, "CON", modified_at=2**64 - 1)],
        "message",
        True,
    ),
    (
        [file(10, "x", over=(0, 7, b"another"), swapped=True), file(11, "x", over=(5, 7, b"hole"))],
        "parts",
        False,
    ),
    ([file(12, "over", over=(0, 60, b"another")), file(12, "over")], "message", True),
    ([_bomb(HUGE, 0), _bomb(8, 1), _bomb(8, 2, cut=3)], "message", False),
    ([Envelope((TEXT,), unknown_keys=True, times=40)] * 2, "keys", False),
    ([Envelope((TEXT,), ".sys", unknown_keys=True, times=40)], "message", False),
    ([Envelope((TEXT,), ".bulk", forge=(2000, b"?"), times=40)], "file", False),
    (
        [receipt(), receipt(foreign=True), receipt(unknown_keys=True), receipt(leaves=300)],
        "message",
        False,
    ),
    (
        [
            receipt(at=2**64 - 1),
            receipt(outcome=3),
            receipt(patch=(40, b"\xff")),
            receipt(head=b"\xff"),
        ],
        "keys",
        False,
    ),
    ([Envelope((Said(b"\xff", kind),), ".sys") for kind in (RECEIPTS, STEP)], "message", False),
    (
        [Envelope((TEXT,), session=True, forge=at, resign=True) for at in (None, (900, b"?"))],
        "session",
        False,
    ),
    (
        [Envelope((TEXT,)), Envelope((Said(b"another text"),), generation=1, back=1), Replay(1)],
        "message",
        False,
    ),
    (
        [
            Envelope(
                (attrs.evolve(TEXT, headers={"filename": "a" * 300}, sent_at=LAST),), sealed_at=LAST
            )
        ],
        "file",
        True,
    ),
    (
        [_manifest_of(raw) for raw in (b"[" * 2000, b"null", b'{"parts": 1}', b"\xff")],
        "message",
        True,
    ),
    *[
        ([Trap(place, "OverflowError")], "message", at % 2 == 1)
        for at, place in enumerate(sorted(traps.PLACES))
    ],
    *[([Trap("lines_of", error)], "message", False) for error in sorted(traps.ERRORS)],
]
Attack = Envelope | Receipt | Replay | File | RawFrame | Bundle | Trap
