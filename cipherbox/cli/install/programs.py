"""Running programs of the system."""

from __future__ import annotations

import subprocess
from typing import Any

from cipherbox.errors import ConfigError


def call(command: list[str], **options: Any) -> str:
    """Return what a program of the system printed; raise ConfigError with its error if it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            **options,
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(
            f"{' '.join(command)} failed: {output[-1] if output else f'code {done.returncode}'}"
        )
    return str(done.stdout).strip()
