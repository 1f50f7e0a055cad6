"""Settings in force, as data and as TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from cipherbox.config.settings import CLIENT_TABLES, SERVER_TABLES, ClientConfig, ServerConfig
from cipherbox.config.toml_file import FIXED_LIMITS, toml_value
from cipherbox.limits import Limits


def settings_values(config: ServerConfig | ClientConfig) -> dict[str, dict[str, Any]]:
    """Return the settings in force by table and name; paths as text."""
    tables = SERVER_TABLES if isinstance(config, ServerConfig) else CLIENT_TABLES
    return {
        name: {
            a.name: str(value) if isinstance(value, Path) else value
            for a in attrs.fields(kind)
            if not (kind is Limits and a.name in FIXED_LIMITS)
            for value in [getattr(getattr(config, name, config), a.name)]
        }
        for name, kind in tables.items()
    }


def settings_text(config: ServerConfig | ClientConfig) -> str:
    """Return the settings in force as TOML."""
    lines: list[str] = []
    for table, values in settings_values(config).items():
        lines += [
            f"[{table}]",
            *(f"{key} = {toml_value(value)}" for key, value in values.items()),
            "",
        ]
    return "\n".join(lines)
