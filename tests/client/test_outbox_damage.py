"""Bits of the outbox that flipped while an envelope waited: it is sealed again if its body is
whole, else parked with the reason; and what waits behind it is delivered.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.outbox.outbox import DATABASE, FILES
from cipherbox.client.outbox.rows import PARKED, WAITING
from cipherbox.client.receiving.receiver import Receiver


def flip(outbox: Path, envelope_id: bytes, where: float) -> None:
    """Flip one bit of the bytes that the outbox keeps of an envelope."""
    with closing(sqlite3.connect(outbox / DATABASE, isolation_level=None)) as db:
        file, data = db.execute(
            "SELECT file, data FROM envelopes WHERE envelope_id = ?", (envelope_id,)
        ).fetchone()
        path = outbox / FILES / file if file else None
        changed = bytearray(path.read_bytes() if path is not None else data)
        changed[int(where * len(changed))] ^= 0x10
        if path is not None:
            path.write_bytes(changed)
        else:
            db.execute(
                "UPDATE envelopes SET data = ? WHERE envelope_id = ?", (bytes(changed), envelope_id)
            )


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("size", [10, 400_000])  # in the database, in a file
async def test_a_flipped_bit_is_noticed_and_nothing_wrong_arrives(
    hq: Any, size: int, where: float
) -> None:
    async with hq.client("FL-LAB", keep_trying=True) as lab:
        await lab.publish("first", to="CA-RC")
        hq.gate.target, port = None, hq.gate.target
        await hq.gate.cut()
        damaged = await lab.publish("x" * size, to="CA-RC", wait=False)
        await lab.publish("whole", to="CA-RC", wait=False)
    flip(next(hq.home("FL-LAB").rglob(DATABASE)).parent, damaged.envelope_id, where)
    hq.gate.target = port
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        lab.outbox().look()
        with trio.fail_after(60):
            while (row := lab.outbox().outbox.find(damaged.envelope_id)).state == WAITING:
                await trio.sleep(0.01)
            sent = ["first", "whole"] if row.state == PARKED else ["first", "x" * size, "whole"]
            assert await Receiver(center).run(count=len(sent)) == len(sent)
    assert sorted(line["content"] for line in hq.lines("CA-RC")) == sorted(sent)
    assert row.state == PARKED or row.generation == 1
    assert row.reason or row.state != PARKED
