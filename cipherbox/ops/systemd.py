"""systemd's interface to a service: notifications (sd_notify), the watchdog and socket activation.

All of it is by environment variables and does nothing without them, so `serve` runs the same under
any other manager.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time

from cipherbox.errors import ConfigError

PLAIN, WEBSOCKET = "plain", "websocket"  # FileDescriptorName= of the socket units
_UNITS = {"cipherbox.socket": PLAIN, "cipherbox-websocket.socket": WEBSOCKET, "unknown": PLAIN}
_FIRST_FD = 3  # sd_listen_fds(3)
_ASK_S = 10.0


def notify(*lines: str) -> bool:
    """Send the lines, for example ``READY=1``; return False without systemd.  Never raise: they are
    only notifications.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path or not hasattr(socket, "AF_UNIX"):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect("\0" + path[1:] if path.startswith("@") else path)
            channel.sendall("\n".join(lines).encode())
    except OSError:
        return False
    return True


def reloading() -> bool:
    """Notify that the settings are being reloaded; ``READY=1`` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s() -> float:
    """Return the watchdog's timeout in seconds; 0: no watchdog."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(usec) / 1e6


def alive() -> None:
    """Send the watchdog's keep-alive."""
    if watchdog_s():
        notify("WATCHDOG=1")


def passed_sockets() -> dict[str, list[socket.socket]]:
    """Return the listening sockets passed by systemd, by name; raise ConfigError for anything else.

    They are handed over once: a child process must not take them for its own.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    if pid != str(os.getpid()) or not count.isdigit():
        return found
    for number in range(int(count)):
        given = names[number] if number < len(names) and names[number] else "unknown"
        name = _UNITS.get(given, given)
        if name not in (PLAIN, WEBSOCKET):
            raise ConfigError(
                f"systemd passes a socket named {given!r}; its unit needs "
                f"FileDescriptorName={PLAIN} or {WEBSOCKET}"
            )
        found.setdefault(name, []).append(_taken(_FIRST_FD + number, name))
    return found


def listens_on(port: int) -> bool:
    """Return whether systemd listens on the port for HQ, which need not run."""
    if shutil.which("systemctl") is None:
        return False
    command = [
        "systemctl",
        "show",
        "--property=ActiveState,Listen",
        *(u for u in _UNITS if u.endswith(".socket")),
    ]
    try:
        shown = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ASK_S
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    active = [unit for unit in shown.split("\n\n") if "ActiveState=active" in unit.splitlines()]
    return any(re.search(rf"^Listen=\S*:{port} \(Stream\)$", unit, re.MULTILINE) for unit in active)


def _taken(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"systemd passes no socket as {name!r}: {error.strerror}") from None
    inet = taken.family in (socket.AF_INET, socket.AF_INET6) and taken.type == socket.SOCK_STREAM
    if not inet or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(
            f"the socket {name!r} of systemd does not listen on TCP; its unit needs "
            "ListenStream=PORT"
        )
    return taken
