"""Entry of the zipapp, of `python -m cipherbox` and of the installed command."""

from __future__ import annotations

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Run one command."""
    # What is imported stays: a start makes fewer objects than this, and collecting among them would
    # take a tenth of its CPU time.
    gc.set_threshold(200_000, 20, 50)
    from cipherbox.cli.main import main

    main()


if __name__ == "__main__":
    main()
