"""The screen of a conversation, and the lines typed into it."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import attrs
import click
import trio

from cipherbox import clock
from cipherbox.apps.chat.conversation import AT_HQ, LINE_BYTES, OPENED, REFUSED, SEALED, ChatLine
from cipherbox.apps.chat.lines import ChatLines, EncryptedChatLines, ReceivedLine
from cipherbox.cli.output import print_json, safe, say
from cipherbox.cli.stdout import output_failure
from cipherbox.concurrency import Flag

if TYPE_CHECKING:
    from cipherbox.client.events import Event

FOLLOW_S = 0.2
TOGETHER_S = 0.6  # states that follow each other so fast are one note
SLOW_S = 3.0  # a line that is not with HQ by then gets a note
_CLEAR = "\r\x1b[K"
_SHOWN = 16_384  # characters of another party's line
_NAMES = 4


class Screen:
    """Prints a conversation.  ``interactive``: lines are typed on a terminal."""

    def __init__(self, *, as_json: bool, interactive: bool) -> None:
        self._as_json, self._interactive = as_json, interactive
        self._newest: ChatLine | None = None
        self._changed = Flag()
        self._unreachable = False

    def begin(self, me: str, others: Sequence[str]) -> None:
        """Print the participants."""
        if self._interactive:
            self._dim(f"{me} with {_names(others)}; each line is sent immediately, Ctrl-D ends")

    def received(self, line: ReceivedLine, *, history: bool = False) -> None:
        """Print a line of another client."""
        if self._as_json:
            print_json({"event": "said", **attrs.asdict(line), "history": history})
        else:
            also = f" (to {safe(line.to)})" if "," in line.to or " " in line.to else ""
            text = (
                f"{_clock(line.sent_timestamp)} {safe(line.sender_id)}{also}: "
                f"{safe(line.text, _SHOWN)}"
            )
            say(f"{_CLEAR if self._interactive and sys.stdout.isatty() else ''}{text}")
        if output_failure() is not None:
            raise BrokenPipeError  # the reader is gone; what was received is in the inbox

    def state(self, line: ChatLine) -> None:
        """Show the new state of a line that was sent."""
        if self._as_json:
            refused = [{"by": by, "reason": reason} for by, reason in line.refused]
            print_json(
                {
                    "event": "state",
                    "message_id": line.message_id,
                    "state": line.state,
                    "opened": line.opened,
                    "refused": refused,
                }
            )
        elif line.refused and (line.state == REFUSED or not self._interactive):
            self.note(f"not delivered: {safe(line.text, 60)!r}: {_refusals(line)}")
        elif self._newest is None or line.number >= self._newest.number:
            self._newest = line
            self._changed.set()

    def note(self, text: str) -> None:
        """Print a note that must be seen, between the lines."""
        self._dim(safe(text, _SHOWN), fg="yellow")

    def event(self, event: Event) -> None:
        """Print events about keys, and once each that HQ is unreachable or reachable again."""
        if event.role == "LINE":
            unreachable = event.kind == "reconnecting"
            if not unreachable or not self._unreachable:
                self.note(
                    "HQ cannot be reached; lines are kept here and sent later"
                    if unreachable
                    else event.text
                )
            self._unreachable = unreachable
        elif event.role == "KEYS" or event.kind == "key":
            self.note(event.text)

    async def notes(self) -> None:
        """Show the state of the newest line on a terminal, in as few notes as possible."""
        shown: tuple[int, str] = (0, "")
        while self._interactive:
            await self._changed.wait()
            self._changed.clear()
            await trio.sleep(TOGETHER_S)
            if self._newest is not None and self._newest.state == SEALED:
                with trio.move_on_after(SLOW_S - TOGETHER_S):
                    await self._changed.wait()
                    continue
            line = self._newest
            if line is not None and shown != (shown := (line.number, _progress(line))):
                self._dim(shown[1])

    async def follow(self, lines: ChatLines | EncryptedChatLines) -> None:
        """Show new lines of the others as they arrive."""
        while True:
            found = lines.new()
            for line in found:
                self.received(line)
            await trio.sleep(0 if found else FOLLOW_S)

    def _dim(self, text: str, **style: str) -> None:
        clear = _CLEAR if self._interactive and sys.stderr.isatty() else ""
        click.echo(clear + click.style(f"  · {text}", dim=not style, **style), err=True)  # type: ignore[arg-type]


async def lines_of_input() -> AsyncIterator[str | None]:
    """Yield lines of standard input as they arrive; None for one that is too long or not UTF-8."""
    rest = b""
    dropping = False
    while True:
        data = await trio.to_thread.run_sync(os.read, 0, LINE_BYTES, abandon_on_cancel=True)
        *whole, rest = (rest + data).split(b"\n") if data else (rest, b"")
        for raw in whole:
            if dropping or len(raw) > LINE_BYTES:
                dropping = False
                yield None
            else:
                yield _decoded(raw.removesuffix(b"\r"))
        if not data:
            return
        if len(rest) > LINE_BYTES:
            dropping, rest = True, b""


def _decoded(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _progress(line: ChatLine) -> str:
    if line.state == OPENED:
        return f"opened by {_names(line.opened)}"
    if line.state == AT_HQ:
        notes = [AT_HQ]
        if line.opened:
            notes.append(f"opened by {_names(line.opened)}")
        if line.refused:
            notes.append(_refusals(line))
        return "; ".join(notes)
    return f"{SEALED}, not with HQ yet"


def _refusals(line: ChatLine) -> str:
    return "; ".join(f"refused by {by}: {safe(reason)}" for by, reason in line.refused)


def _names(names: Sequence[str]) -> str:
    if len(names) > _NAMES:
        return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"
    return ", ".join(names)


def _clock(timestamp: str) -> str:
    try:
        at = datetime.datetime.fromisoformat(timestamp).astimezone()
    except (ValueError, OverflowError):
        return safe(timestamp, 30)
    today = at.date() == clock.now().astimezone().date()
    return at.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
