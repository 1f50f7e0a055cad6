"""The settings in effect."""

from __future__ import annotations

import attrs

from cipherbox.config.settings import ServerConfig


@attrs.define
class LiveConfig:
    """The settings, which a reload replaces: read `now` each time, never keep it."""

    now: ServerConfig
