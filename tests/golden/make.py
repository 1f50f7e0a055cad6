"""Makes every golden file anew: `python -m tests.golden.make`.

Frames and tokens come out the same each time.  Sealing is random, so envelopes, bundles and
receipts come out new: do that only when a format changes on purpose.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    wanted = sys.argv[1:]
    for path in sorted(HERE.glob("make_*.py")):
        if not wanted or path.stem.removeprefix("make_") in wanted:
            importlib.import_module(f"tests.golden.{path.stem}").main()


if __name__ == "__main__":
    main()
