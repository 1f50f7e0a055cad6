"""Make golden files: `make generate`, or `python -m tests.golden.make NAME...`.

Frames, tokens and the log come out the same each time.  Sealing is random: envelopes, bundles,
receipts and sessions come out different, so they are made only by name, when a format changes on
purpose.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Set
from pathlib import Path

HERE = Path(__file__).parent
REPEATABLE = ("frames", "log")


def names() -> set[str]:
    """Return the names of all generators of golden files."""
    return {path.stem.removeprefix("make_") for path in HERE.glob("make_*.py")}


def make(wanted: Set[str]) -> None:
    """Run the generators named in ``wanted``."""
    if unknown := wanted - names():
        raise SystemExit(
            f"unknown golden files: {', '.join(sorted(unknown))}; "
            f"there are {', '.join(sorted(names()))}"
        )
    for name in sorted(wanted):
        importlib.import_module(f"tests.golden.make_{name}").main()


if __name__ == "__main__":
    make(set(sys.argv[1:]) or names())
