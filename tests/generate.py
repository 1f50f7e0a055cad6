"""Make everything that is generated: manual pages, package maps, blocking calls, golden files.

    make generate                      whatever comes out the same each time
    make generate GOLDEN="envelopes"   and those golden files anew, whose sealing is random

Run it after a change to a frame, setting, metric, command, error, or a module's first sentence.
What it changes belongs in the same commit.
"""

from __future__ import annotations

import sys

from cipherbox.cli import document as command_pages
from cipherbox.wire import document as protocol_page
from tests import blocking_calls, maps
from tests.golden import make as golden
from tests.test_layers import LAYERS


def main() -> None:
    """Run every generator; the arguments name golden files that are random."""
    blocking_calls.write()
    maps.write(LAYERS)
    command_pages.main()
    protocol_page.main()
    golden.make({*golden.REPEATABLE, *sys.argv[1:]})


if __name__ == "__main__":
    main()
