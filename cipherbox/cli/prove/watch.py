"""Watch a trial: who makes progress, who waits for what, and how much memory and how many files
each process uses.

Progress is a confirm in a sender's log, a line in a receiver's file, or, when the senders publish
no more, a change of what they wait for.  Senders publish without a pause, so if nothing of this
happens for the trial's patience, which is longer than any fault, nothing will: that is a
standstill, and a failure.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import trio

from cipherbox import portable
from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.worker import CONFIRMED, LOG, PUBLISHING, STATE

LOOK_S = 0.2
_SAMPLES_S = 1.0
_MOST_SAMPLES = 600  # of each process; then every second one is dropped
CALM_S = 300.0  # for the first messages, whatever the machine
_WARNINGS = 3  # of HQ, in the report of a standstill
_FEWEST_S, _TIMES = 45.0, 20.0  # patience: this long, and this many times the calm round trip


class Standstill(Exception):
    """Nothing happened for too long; the arguments say who waits for what."""


class Watch:
    """Watches the processes of ``cast``.  ``patience_s``: None to find it out from the machine."""

    def __init__(self, cast: Cast, began: float, patience_s: float | None) -> None:
        self._cast, self._began = cast, began
        self._given = patience_s
        self.patience_s = CALM_S if patience_s is None else patience_s
        self.samples: dict[str, list[list[float]]] = {}
        self._seen: Any = None
        self._read: dict[str, tuple[int, int]] = {}  # sender -> (bytes, confirms) of its log
        self._since = time.monotonic()
        self._every = 1

    async def sample(self) -> None:
        """Sample memory and open files of every process, until cancelled."""
        turn = 0
        while True:
            await trio.sleep(_SAMPLES_S)
            turn += 1
            if turn % self._every:
                continue
            at = round(time.monotonic() - self._began, 1)
            for name, process in self._cast.processes.items():
                usage, files = portable.process_usage(process.pid), portable.files_of(process.pid)
                if usage is not None and files is not None and process.poll() is None:
                    self.samples.setdefault(name, []).append([at, usage[1], files])
            if any(len(rows) > _MOST_SAMPLES for rows in self.samples.values()):
                self._every *= 2
                self.samples = {name: rows[::2] for name, rows in self.samples.items()}

    # -- progress ----------------------------------------------------------------------------------

    async def calm(self) -> float:
        """Wait until every sender had a confirm and every receiver a message, before any fault;
        return how long it took, and set the patience by it.
        """
        began = time.monotonic()
        while not all(self._confirms(name) for name in self._cast.senders) or not all(
            _size(self._lines(name)) for name in self._cast.receivers
        ):
            await self.look()
        calm_s = time.monotonic() - began
        if self._given is None:
            self.patience_s = max(_FEWEST_S, _TIMES * calm_s)
        return calm_s

    async def confirmed(self) -> None:
        """Wait until HQ has confirmed something since now, so that the next fault can lose it, also
        on a slow machine.
        """
        known = [self._confirms(name) for name in self._cast.senders]
        while known == [self._confirms(name) for name in self._cast.senders]:
            await self.look()

    async def look(self) -> None:
        """Pause, and raise Standstill if nothing happened for too long, or StageFailed if a process
        ended.
        """
        await trio.sleep(LOOK_S)
        await self._cast.look_after()
        self.judge()

    def judge(self) -> None:
        """Raise Standstill if nothing happened for too long."""
        seen = (
            [self._confirms(name) for name in self._cast.senders],
            [_size(self._lines(name)) for name in self._cast.receivers],
            [self._finishing(name) for name in self._cast.senders],
        )
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since > self.patience_s:
            raise Standstill(
                f"nothing happened for {now - self._since:.0f} s",
                *(self._waits_for(name) for name in self._cast.names),
            )

    async def guard(self) -> None:
        """Judge until cancelled, also while a fault is played that waits for a process."""
        while True:
            await trio.sleep(LOOK_S)
            self.judge()

    def _waits_for(self, name: str) -> str:
        """Return what a process waits for, as far as it can be seen from here."""
        process = self._cast.processes.get(name)
        if process is None:
            return f"{name} was not started"
        if process.poll() is not None:
            return f"{name} ended with {process.returncode}"
        who = f"{name} (process {process.pid})"
        if portable.is_stopped(process.pid):
            return f"{who} is stopped by a signal and waits to be continued"
        if name in self._cast.hqs:
            return f"{who} runs, and waits for requests{self._warned(name)}"
        if name in self._cast.receivers:
            return f"{who} waits for deliveries; it has {_count(self._lines(name))} messages"
        state = self._state(name)
        if not state:
            return f"{who} has not begun"
        trouble = f" ({state['trouble']})" if state["trouble"] else ""
        connected = "" if state["connected"] else f"; it is not connected to HQ{trouble}"
        return (
            f"{who}, {state['doing']}, waits for {state['waiting']} confirms of HQ and for "
            f"receipts of {state['unsigned']} envelopes{connected}"
        )

    def _warned(self, name: str) -> str:
        """Return the last warnings in HQ's output."""
        found: dict[str, None] = {}
        for line in reversed(_bytes(self._cast.stage.output(name)).splitlines()):
            with suppress(ValueError, TypeError, KeyError):
                row = orjson.loads(line)
                if row["level"] != "INFO":
                    found[f"{row['message']} ({row.get('error', '')})".replace(" ()", "")] = None
            if len(found) == _WARNINGS:
                break
        return f"; its last warnings: {'; '.join(reversed(found))}" if found else ""

    def _confirms(self, name: str) -> int:
        """Return the number of confirms in a sender's log, reading only what is new in it."""
        at, count = self._read.get(name, (0, 0))
        new = _bytes(self._cast.notes(name) / LOG, at)
        whole = new[: new.rfind(b"\n") + 1]
        self._read[name] = at + len(whole), count + whole.count(CONFIRMED)
        return self._read[name][1]

    def _finishing(self, name: str) -> Any:
        """Return a sender's state once it publishes no more; before, its outbox may grow."""
        state = self._state(name)
        return None if state is None or state["doing"] == PUBLISHING else state

    def _state(self, name: str) -> Any:
        raw = _bytes(self._cast.notes(name) / STATE)
        return orjson.loads(raw) if raw else None

    def _lines(self, name: str) -> Path:
        return self._cast.home(name) / "data" / "received_messages.jsonl"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there yet, or its disk has no power
        return 0


def _bytes(path: Path, at: int = 0) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(at)
            return file.read()
    except OSError:
        return b""


def _count(path: Path) -> int:
    return _bytes(path).count(b"\n")
