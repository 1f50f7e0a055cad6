"""Directory and order of received files: options and notice of `receive`, `fetch` and `agent`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cipherbox.client.home import Home

incoming_option = click.option(
    "--incoming",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for received files. [default: the setting [inbox] incoming; printed "
    "at the start]",
)
ordered_option = click.option(
    "--ordered",
    is_flag=True,
    help="With --exec: a message waiting for a retry blocks later ones of its sender.",
)


def announce_incoming(home: Home, incoming: Path | None) -> None:
    """Print where received files are stored."""
    from cipherbox.cli.output import warn

    if home.hides is None:
        warn(f"Files arrive in {(incoming or home.incoming).absolute()}")
    else:
        warn(
            "Messages and files are kept under this home's key: cipherbox inbox show, cipherbox "
            "inbox save."
        )
        if next((home.path / "data").glob("received_messages*.jsonl"), None) is not None:
            warn(
                "Messages received earlier stay readable in data/; to encrypt them: cipherbox "
                "inbox lock"
            )
