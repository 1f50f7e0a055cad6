"""Sample data of a version, unpacked so that the program of today can open it: HQ and homes in
another place.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.config.settings import load_server_config
from tests.client.real_hq import Gate, RealHq

PASSWORD = "a password of sample data 0.5.0"  # of NY-RC's home
_RECENT_S = 24 * 3600


def unpack(version: str, place: Path) -> dict[str, Any]:
    """Unpacks the data into ``place``; what is expected of it."""
    with tarfile.open(Path(__file__).parent / f"{version}.tar.xz") as archive:
        if hasattr(tarfile, "tar_filter"):  # Python 3.11.2 of Debian 12 has none
            archive.extraction_filter = tarfile.tar_filter
        archive.extractall(place)  # modes stay: what holds a secret is 0600
    for path in (place / version).iterdir():
        path.rename(place / path.name)
    expected: dict[str, Any] = json.loads((place / "expected.json").read_text())
    for outbox in place.glob("homes/*/outbox.sqlite3"):
        _move(outbox, expected["path"], str(place))
    return expected


def _move(outbox: Path, before: str, after: str) -> None:
    """A home in another place: copies of files have another path, and the times that an archive
    rounds.
    """
    with closing(sqlite3.connect(outbox)) as db, db:
        db.execute("UPDATE transfers SET file = replace(file, ?, ?)", (before, after))
        for file, modified_ns in db.execute(
            "SELECT file, modified_ns FROM transfers WHERE copied"
        ).fetchall():
            if Path(file).exists():
                os.utime(file, ns=(modified_ns, modified_ns))


def set_clock(expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Set this process's clock back to the day after the data was made, whenever this runs: what
    waits in it, and half a file, last for so many days by each version's own rules.  Its
    certificates, which OpenSSL compares with the real clock, last until 2036.
    """
    late_s = time.time() - expected["made_at"] / 1000 - _RECENT_S
    if late_s > 0:
        shift_clock(monkeypatch, -late_s)


def shift_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    time_s, time_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: time_s() + by_s)
    monkeypatch.setattr(time, "time_ns", lambda: time_ns() + int(by_s * 1e9))


def _tell_address(place: Path, address: str) -> None:
    for settings in (*place.glob("homes/*/client.toml"), place / "admin" / "client.toml"):
        lines = settings.read_text().splitlines()
        lines = [
            f'address = "{address}"' if line.startswith("address = ") else line for line in lines
        ]
        settings.write_text("\n".join(lines) + "\n")


@asynccontextmanager
async def old_hq(place: Path) -> AsyncIterator[RealHq]:
    """The HQ that was unpacked there, serving, behind a gate whose address its clients know."""
    async with trio.open_nursery() as nursery:
        gate = Gate(nursery)
        await gate.start()
        _tell_address(place, gate.address)
        config = load_server_config(place / "hq")
        config = attrs.evolve(config, limits=attrs.evolve(config.limits, stop_s=1.0))
        hq = RealHq(place / "hq", place / "homes", gate, nursery, config, place / "admin")
        await hq.start()
        try:
            yield hq
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(15):
                await hq.stop()
            nursery.cancel_scope.cancel()
