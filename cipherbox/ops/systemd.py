"""Tells systemd how the service is doing (sd_notify): a datagram to the socket that $NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Sends the lines, for example ``READY=1``; False without systemd, and never an error: it is only news."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path or not hasattr(socket, "AF_UNIX"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as news:
            news.connect("\0" + path[1:] if path.startswith("@") else path)
            news.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True
