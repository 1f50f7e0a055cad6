"""The demo's report, and how it is printed."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import attrs

from cipherbox.classes import define

HQ = "DC-HQ"


@define
class Delivery:
    """One item at one center: the expected and the actual values."""

    item: str
    message_id: str
    sender: str
    recipient: str
    size: int
    sha256: str
    sent_time: str = ""
    delivered_time: str = ""
    acknowledged_time: str = ""
    opened_time: str = ""  # by the center's signed receipt
    received_sha256: str = ""


@define
class Report:
    """The outcome of the demo; no differences means that every guarantee held."""

    directory: Path
    deliveries: list[Delivery] = attrs.Factory(list)
    differences: list[str] = attrs.Factory(list)
    searched_files: int = 0
    searched_bytes: int = 0
    received_files: list[Path] = attrs.Factory(list)
    seconds: float = 0.0


@define
class Shown:
    """A command a user ran, how it ended and what it printed."""

    command: str
    code: int
    output: str


@define
class Scene:
    """One attempt of a dishonest HQ; ``missed`` lists what was not detected."""

    title: str
    tried: str
    explained: str
    shown: list[Shown] = attrs.Factory(list)
    missed: list[str] = attrs.Factory(list)

    def expect(self, holds: bool, text: str) -> None:
        """Note ``text`` as missed unless it holds."""
        if not holds:
            self.missed.append(text)


def show(report: Report, keep: bool) -> None:
    from cipherbox.cli.output import fail, next_step, safe, say, size_text, table

    say()
    table(
        ("item", "from", "to", "size", "SHA-256", "sent", "delivered", "acknowledged", "signed"),
        [
            (
                delivery.item,
                delivery.sender,
                delivery.recipient,
                size_text(delivery.size),
                delivery.received_sha256[:16]
                + ("" if delivery.received_sha256 == delivery.sha256 else " DIFFERS"),
                *map(
                    _clock,
                    (
                        delivery.sent_time,
                        delivery.delivered_time,
                        delivery.acknowledged_time,
                        delivery.opened_time,
                    ),
                ),
            )
            for delivery in report.deliveries
        ],
    )
    say()
    if report.differences:
        fail(f"{len(report.differences)} differences:")
        for difference in report.differences:
            say(f"  - {safe(difference)}")
        return
    say(
        f"{len(report.deliveries)} deliveries arrived, each with the bytes that were sent, each "
        "with a signed receipt."
    )
    say(
        f"{HQ} has read none: no plaintext in {report.searched_files} files, "
        f"{size_text(report.searched_bytes)}."
    )
    say(f"It took {report.seconds:.1f} s.")
    if keep:
        for file in report.received_files:
            say(f"Received: {file}")
        next_step(f"look around in {report.directory}; the manual: cipherbox manual quickstart")
    else:
        next_step(
            "keep the files for inspection: cipherbox demo --keep; set up your own: cipherbox "
            "manual quickstart"
        )


def show_json(report: Report) -> None:
    from cipherbox.cli.output import print_json

    print_json(
        {
            "deliveries": [attrs.asdict(delivery) for delivery in report.deliveries],
            "differences": report.differences,
            "searched_files": report.searched_files,
            "searched_bytes": report.searched_bytes,
            "received_files": [str(file) for file in report.received_files],
            "seconds": round(report.seconds, 3),
        }
    )


def show_scenes(scenes: Sequence[Scene], as_json: bool, kept: Path | None) -> None:
    """Print what a hostile HQ tried, what users saw, and whether it was caught."""
    from cipherbox.cli.output import fail, next_step, print_json, safe, say

    if as_json:
        print_json([attrs.asdict(scene) | {"caught": not scene.missed} for scene in scenes])
        return
    for number, scene in enumerate(scenes, 1):
        say()
        say(f"{number}. {scene.title.upper()}")
        say(_prose(scene.tried))
        for shown in scene.shown:
            say()
            say(f"   {safe(shown.command)}")
            for line in shown.output.splitlines():
                say(f"   | {safe(line)}")
            if shown.code:
                say(f"   (exit code {shown.code})")
        say()
        for text in scene.missed:
            fail(f"Missed: {safe(text)}")
        if not scene.missed:
            say(_prose(f"Caught. {scene.explained}"))
    say()
    caught = sum(not scene.missed for scene in scenes)
    say(f"{caught} of {len(scenes)} were caught.")
    if kept is not None:
        next_step(
            f"look around in {kept}; what is protected, and what is not: cipherbox manual "
            "threat-model"
        )
    else:
        next_step("what is protected, and what is not: cipherbox manual threat-model")


def _clock(text: str) -> str:
    """Return the time of day of HQ's timestamp, to the millisecond."""
    return text.replace("T", " ").rpartition(" ")[2].removesuffix("Z").removesuffix("+00:00") or "-"


def _prose(text: str) -> str:
    """Return the text wrapped between words to the width of the terminal."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(
        text,
        width,
        initial_indent="   ",
        subsequent_indent="   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
