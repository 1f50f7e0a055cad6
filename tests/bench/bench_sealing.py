"""What sealing, reading and opening cost: `python -m tests.bench.bench_sealing`."""

from __future__ import annotations

import time
from collections.abc import Callable

from cipherbox.envelope import layout as layouts
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.sealing.body import pack_contents
from cipherbox.sealing.open import open_envelope, parse_envelope
from cipherbox.sealing.seal import Sealed, seal
from tests.parties import now_ms, party


def per_item(work: Callable[[], object], items: int, seconds: float = 1.0) -> float:
    """Microseconds for one item, over about so many seconds."""
    work()
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work()
        rounds += 1
    return (time.perf_counter() - start) / rounds / items * 1e6


def main() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    ids = EnvelopeIds(now_ms)

    def sealed(contents: list[bytes]) -> Sealed:
        plain = pack_contents(contents)
        return seal(
            lab.identity,
            [ca.bundle],
            plain,
            len(contents),
            envelope_id=ids.next(),
            sealed_at=now_ms(),
        )

    def opened(raw: bytes) -> object:
        return open_envelope(parse_envelope(raw), ca.identity, lab.bundle)

    small, large = b"x" * 100, bytes(1 << 20)
    for name, contents in (
        ("1 x 100 B", [small]),
        ("8192 x 100 B", [small] * 8192),
        ("1 x 1 MiB", [large]),
    ):
        raw = sealed(contents).raw
        n = len(contents)
        print(
            f"{name:>13}: {len(raw):>9} bytes   seal "
            f"{per_item(lambda c=contents: sealed(c), n):8.2f}   HQ reads "
            f"{per_item(lambda r=raw: layouts.hashes(r, layouts.split(r)), n):8.3f}   open "
            f"{per_item(lambda r=raw: opened(r), n):8.2f}   us a message"
        )


if __name__ == "__main__":
    main()
