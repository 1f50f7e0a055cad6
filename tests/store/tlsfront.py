"""TLS in front of a PostgreSQL server whose build has none: answers SSLRequest as PostgreSQL
does, and passes on.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import suppress
from types import TracebackType

# PostgreSQL documentation, "SSLRequest"
SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class TlsFront:
    """Listens on a port of loopback while the block runs; one thread for each connection."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target, self._context = target, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> TlsFront:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            if select.select([self._listener], [], [], 0.1)[0]:
                thread = threading.Thread(target=self._pass, args=(self._listener.accept()[0],))
                self._threads.append(thread)
                thread.start()

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError, ssl.SSLError):
            client.settimeout(60)
            if client.recv(8) != SSL_REQUEST:
                return
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as secure:
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    self._pump(secure, server)

    def _pump(self, secure: ssl.SSLSocket, server: socket.socket) -> None:
        while not self._stop.is_set():
            ready = (
                [secure] if secure.pending() else select.select([secure, server], [], [], 0.1)[0]
            )
            for source, sink in ((secure, server), (server, secure)):
                if source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    sink.sendall(data)
