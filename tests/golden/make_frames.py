"""A full and an empty sample of every kind of frame, and tokens."""

from __future__ import annotations

from typing import Any

from cipherbox.wire import codec, frames
from cipherbox.wire.fields import TABLE, Kind, specs_of
from cipherbox.wire.token import Token, encode_token
from tests.golden import files

TEXTS = ["FL-LAB", "größe · 寸", "ca_rc_queue"]


def sample(kind: Kind, seed: int, full: bool) -> Any:
    """A value of a field type: ordinary and telling, or the smallest."""
    if kind.name == "listing":
        return [make_item(kind.item, seed + i, full) for i in range(2)] if full else []
    if kind.name in ("text8", "text16"):
        return TEXTS[seed % len(TEXTS)] if full else ""
    if kind.name in ("blob", "rest"):
        return bytes((seed * 7 + i) % 256 for i in range(20)) if full else b""
    if kind.name == "id16":
        return bytes(range(seed, seed + 16)) if full else bytes(16)
    if kind.name == "flag":
        return full
    sizes = {"u8": 0xA1, "u16": 0xA1B2, "u32": 0xA1B2C3D4, "u64": 0xA1B2C3D4E5F60718}
    return sizes[kind.name] - seed if full else 0


def make_item(item: Any, seed: int, full: bool) -> Any:
    if isinstance(item, Kind):
        return sample(item, seed, full)
    return item(*[sample(f.kind, seed + i, full) for i, f in enumerate(specs_of(item))])


def samples() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for spec in TABLE.values():
        for full in (True, False):
            name = f"{spec.name} {'full' if full else 'empty'}"
            found.append(
                (name, spec.cls(*[sample(f.kind, i, full) for i, f in enumerate(spec.fields)]))
            )
    hello = frames.Hello(frames.MAGIC, 2, 2, 17 * 1024 * 1024, 30, "golden 1")
    return [*found, ("HELLO of a client", hello)]


def main() -> None:
    rows = []
    for name, frame in samples():
        raw = codec.encode(frame)
        fields = {k: v for k, v in files.plain(frame).items() if k}
        rows.append({"name": name, "kind": raw[4], "fields": fields, "frame": raw.hex()})
    files.write("frames", rows)
    tokens = [
        Token(
            "FL-LAB",
            "hq.example.org:7443",
            bytes(range(32)),
            1_800_000_000_000,
            bytes(range(100, 116)),
        ),
        Token("a", "127.0.0.1:1,wss://hq.example.org:443/", bytes(32), 0, bytes(16)),
    ]
    files.write("token", [{**files.plain(t), "text": encode_token(t)} for t in tokens])


if __name__ == "__main__":
    main()
