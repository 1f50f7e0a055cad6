"""What a dishonest sender may do, as Hypothesis draws it: each attack shows all it is made of, and shrinks."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import zstandard
from hypothesis import strategies as st

from cipherbox.client.parts import MANIFEST, PART, Manifest, manifest_message, manifest_of, part_message
from cipherbox.sealing.body import Message
from cipherbox.wire import codec, frames
from tests.golden.make_frames import samples

MIB = 1024 * 1024
BOMB = zstandard.ZstdCompressor().compress(bytes(8 * MIB))
FRAMES = {name: codec.encode(frame) for name, frame in samples() if not isinstance(frame, frames.Hello)}

names = st.sampled_from(
    ["", "..", "../../x", "a" * 300, "CON", "\x00", "x/y/z", "\u202egnp.exe", ".partial", "data", "\xe4" * 120]
) | st.text(max_size=40)
numbers = st.sampled_from(["0", "1", "-1", "9" * 40, "nan", "", "\u0663"]) | st.integers(-1, 2**64).map(str)
integers = st.sampled_from([-1, 0, 1, 5, 2**31, 2**63, 2**64 - 1, 253_402_300_799_999])
times = st.none() | integers.filter(lambda at: at >= 0)
short = st.binary(max_size=60)
types = st.sampled_from(
    ["", "text/plain", "application/json", "application/octet-stream", "text/x-chat; charset=utf-8", "x" * 255,
     "application/vnd.cipherbox.receipts", "application/vnd.cipherbox.session-step", "application/vnd.cipherbox.pipe",
     PART, MANIFEST]
) | st.text(max_size=20)  # fmt: skip
headers = st.dictionaries(
    st.sampled_from(["filename", "part", "transfer", "part_bytes", "encoding", "chat", "modified_at", "x"]),
    names | numbers | st.just("zstd"), max_size=4,
)  # fmt: skip


@attrs.frozen
class Said:
    """A message that shows its content."""

    content: bytes = attrs.field(repr=lambda content: repr(content[:60]))
    content_type: str = "text/plain"
    headers: dict[str, str] = attrs.Factory(dict)
    sent_at: int | None = None

    def message(self) -> Message:
        return Message(self.content, self.content_type, self.headers, self.sent_at)


@attrs.frozen
class Envelope:
    """A signed envelope.

    ``damage``: (place, bytes) written over the plaintext before it is sealed; ``forge``: over the sealed bytes, which
    are then signed again if ``resign``.  ``back``: with the id of so many envelopes before.
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


@attrs.frozen
class Replay:
    """The same bytes again, of so many envelopes before."""

    back: int


@attrs.frozen
class File:
    """A part and the manifest that fits it, each in an envelope of its own; the manifest first if ``swapped``."""

    path: tuple[str, ...]
    content: bytes
    modified_at: int
    content_type: str
    compress: bool
    part_bytes: int
    swapped: bool

    def envelopes(self) -> list[Envelope]:
        one = manifest_of(bytes(16), self.path, self.content, self.content_type, self.modified_at)
        one = attrs.evolve(one, part_bytes=self.part_bytes)
        made: list[Message] = [part_message(bytes(16), 0, self.part_bytes, self.content, compress=self.compress)]
        made.insert(0 if self.swapped else 1, manifest_message(one))
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


def over(raw: bytes, patch: tuple[int, bytes]) -> bytes:
    """Other bytes in one place, which is taken modulo the length."""
    at = patch[0] % max(1, len(raw))
    return (raw[:at] + patch[1] + raw[at + len(patch[1]) :])[: max(len(raw), at)]


def _part(content: bytes, values: dict[str, str], more: dict[str, str]) -> Said:
    return Said(content, PART, {**values, **more})


def _manifest(document: Any) -> Said:
    return Said(orjson.dumps(document), MANIFEST)


contents = short | st.sampled_from(
    [BOMB, BOMB[:-3], b"", b"\xff" * 40, b"\x01" * 5000, b"\x01" * MIB, "\u2028\U0001f600".encode() * 50]
)
parts = st.builds(
    _part, contents,
    st.fixed_dictionaries({
        "transfer": st.binary(min_size=16, max_size=16).map(bytes.hex), "part": numbers,
        "part_bytes": st.sampled_from([str(8 * MIB), "1", "60"]) | numbers, "encoding": st.sampled_from(["", "zstd"]),
    }),
    headers,
)  # fmt: skip
odd = st.none() | integers | names | st.lists(names | st.none(), max_size=3) | st.just(1e300)
documents = st.fixed_dictionaries({
    "transfer": st.binary(min_size=16, max_size=16).map(bytes.hex) | odd, "path": st.lists(names, max_size=3) | odd,
    "size": integers | odd, "part_bytes": integers | odd, "parts": st.sampled_from(["", "00" * 32, "zz"]) | odd,
    "modified_at": integers | odd, "content_type": types | odd,
}, optional={
    "version": integers | odd, "entries": odd | st.lists(st.tuples(names, integers, integers), max_size=3)
})  # fmt: skip
broken = st.sampled_from([b"[" * 2000, b"null", b"{}"])
manifests = documents.map(_manifest) | broken.map(lambda raw: Said(raw, MANIFEST))
messages = st.builds(Said, contents, types, headers, times) | parts | manifests
bodies = st.lists(messages, min_size=1, max_size=3).map(tuple) | messages.map(lambda one: (one,) * 40)
patches = st.none() | st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=8))

envelopes = st.builds(
    Envelope, bodies, st.sampled_from(["", ".bulk", ".sys"]), patches, patches, st.booleans(),
    st.sampled_from([False, False, False, True]), st.sampled_from([0, 0, 0, 1, 2**32 - 1]),
    st.none() | integers.filter(lambda at: at >= 0), st.sampled_from([0, 0, 0, 1, 2]),
)  # fmt: skip
plain_envelopes = st.builds(Envelope, bodies, st.sampled_from(["", ".bulk", ".sys"]))
files = st.builds(
    File, st.lists(names, min_size=1, max_size=4).map(tuple), st.binary(min_size=1, max_size=60), integers.map(abs),
    types, st.booleans(), st.sampled_from([60, 100, 8 * MIB]), st.booleans(),
)  # fmt: skip
attacks = st.one_of(
    plain_envelopes, envelopes, files, st.builds(Replay, st.integers(1, 4)), plain_envelopes, envelopes,
    st.builds(Bundle, patches), st.builds(RawFrame, st.sampled_from(sorted(FRAMES)), patches),
)  # fmt: skip
Attack = Envelope | Replay | File | RawFrame | Bundle

__all__ = ["Attack", "Bundle", "Envelope", "File", "Manifest", "RawFrame", "Replay", "attacks", "over"]
