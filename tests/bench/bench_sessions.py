"""What a session costs beside the hybrid, in CPU and wall time: `python -m
tests.bench.bench_sessions`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.sealing import stanzas
from cipherbox.sealing.body import Message, pack
from cipherbox.sealing.identity import DecryptKey
from cipherbox.sealing.open import open_envelope, parse_envelope
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.seal import seal
from tests.client.session_world import world
from tests.parties import now_ms
from tests.sealing.sessions.pairs import answer, begin, person

ROUNDS = 1000


def measured(name: str, work: Callable[[], object], rounds: int = ROUNDS) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(rounds):
        work()
    each = [
        (now - then) / rounds * 1e6
        for now, then in ((time.process_time(), cpu), (time.perf_counter(), wall))
    ]
    print(f"{name:>44}: {each[0]:7.0f} us CPU {each[1]:7.0f} us wall")


def main() -> None:
    key, binding = os.urandom(32), os.urandom(60)
    ends = [begin(person("B"), person("A"))]
    ends[0], raw = session.seal(ends[0], key, b"")
    ends.append(session.decrypt(answer(person("B"), raw), session.parse(raw), b"")[0])

    def wrap(turn: bool) -> None:
        ends[0], raw = session.seal(session.decode(session.encode(ends[0])), key, binding)
        ends[1] = session.decrypt(
            session.decode(session.encode(ends[1])), session.parse(raw), binding
        )[0]
        if turn:
            ends.reverse()

    wrap(True)
    measured("wrap and unwrap in a session", lambda: wrap(False))
    measured("the same, answered each time", lambda: wrap(True))
    pair = DecryptKey.from_seed(1, stanzas.SCHEMES[1].generate())
    measured(
        "wrap and unwrap hpke-mlkem768-x25519",
        lambda: stanzas.unwrap(
            1, pair.private, stanzas.wrap(1, pair.public, key, bytes(32), 0), bytes(32), 0
        ),
    )
    with tempfile.TemporaryDirectory() as directory:
        here, _ = world(Path(directory))
        lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
        plain, ids = pack([Message(b"x" * 100)]), EnvelopeIds(now_ms)

        def in_session() -> None:
            raw = here.seal(lab, "CA-RC", b"x" * 100)
            lab.sessions.sync()
            here.open(center, "FL-LAB", raw)
            center.sessions.acknowledged([parse_envelope(raw).hashes.envelope_hash])

        def hybrid() -> None:
            raw = seal(
                lab.party.identity,
                [center.party.bundle],
                plain,
                1,
                envelope_id=ids.next(),
                sealed_at=now_ms(),
            ).raw
            open_envelope(parse_envelope(raw), center.party.identity, lab.party.bundle)

        in_session()
        measured("an envelope in a session, states on disk", in_session, 200)
        measured("an envelope sealed with the hybrid", hybrid, 200)


if __name__ == "__main__":
    main()
