"""Check that HQ's ports can be bound, and say why not and what to do."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from cipherbox.config.settings import ServerConfig, parse_listen
from cipherbox.errors import Problem
from cipherbox.ops import systemd


def why_not(host: str, port: int, error: OSError) -> Problem:
    """Return what a failed bind means."""
    text = f"cannot listen on {host}:{port}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return Problem(
            text, f"find the program (ss -ltnp 'sport = :{port}') and stop it, or set another port"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return Problem(text, "this machine has no such address; list them: ip address")
    if error.errno == errno.EACCES:
        return Problem(text, "ports below 1024 are reserved to root; set a higher one")
    return Problem(text)


def wanted(config: ServerConfig) -> Iterator[tuple[str, str, int]]:
    """Yield setting, host and port of all addresses that HQ listens on."""
    settings = {
        "[server] listen": config.server.listen,
        "[server] websocket_listen": config.server.websocket_listen,
        "[metrics] listen": config.metrics.listen,
    }
    for setting, text in settings.items():
        for host, port in parse_listen(text):
            yield setting, host, port


def taken(host: str, port: int) -> Problem:
    """Return why the address cannot be bound; empty if it can, or if systemd listens
    there for HQ.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return (
                Problem()
                if error.errno == errno.EADDRINUSE and systemd.listens_on(port)
                else why_not(host, port, error)
            )
    return Problem()
