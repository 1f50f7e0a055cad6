"""The only module that depends on pg8000: connections, prepared statements, COPY, translation of
errors.

Rules:

1. After any failure other than the server's error for one statement, a connection is broken: it is
   closed and never used again.
2. Values are bound, never interpolated.  Names of schemas and tables are quoted here.
3. Plans must not depend on stale statistics: HQ's sessions always use an index if one exists.
4. Nothing waits forever: connecting, statements, locks and silence on the connection all have a
   timeout.  COMMIT may wait for a synchronous standby, to which PostgreSQL's timeouts do not apply,
   but the socket's does.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from struct import error as struct_error
from typing import Any

from pg8000 import native

from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    Damaged,
    DiskFull,
    InvalidRequest,
    Problem,
    StoreError,
    StoreUnavailable,
)
from cipherbox.store.postgres.copy_binary import Rows
from cipherbox.store.postgres.target import Target

CONNECT_S = 4.0
SILENCE_S = 45.0  # longer than any statement may take
STATEMENT_MS, LOCK_MS, IDLE_MS = 30_000, 5_000, 15_000
_SESSION = """
    SET statement_timeout = {};
    SET lock_timeout = {};
    SET idle_in_transaction_session_timeout = {};
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off;
    SET client_min_messages = warning; SET timezone = 'UTC'; SET bytea_output = 'hex'
"""
_CLASSES: dict[str, type[CipherBoxError]] = {
    "53100": DiskFull,
    "XX001": Damaged,
    "XX002": Damaged,
    "22003": InvalidRequest,
}
_SETUP = {
    "28": Problem(
        "the server does not accept this user", "check user, password file and pg_hba.conf"
    ),
    "3D": Problem("no such database", "create it, or correct the name"),
    "42501": Problem("the user lacks a privilege"),
}
_SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
_BROKEN = ("08", "57P", "25006", "25P")  # after these a connection is unusable


class PostgresConnection:
    """One session; its methods raise our errors."""

    def __init__(
        self,
        target: Target,
        host: str,
        port: int,
        password: str | None,
        context: ssl.SSLContext | None,
    ) -> None:
        self.host, self.port = host, port
        self.broken = False
        self.state = ""  # SQLSTATE of the last error
        self._prepared: dict[str, tuple[Any, list[str]]] = {}
        self._sock = _connect(host, port)
        try:
            with self._translated():
                if context is not None:
                    self._sock = _secured(self._sock, context, host)
                self._db = native.Connection(
                    target.user,
                    host=host,
                    database=target.database,
                    password=password,
                    sock=self._sock,
                    ssl_context=False,
                    application_name="cipherbox",
                )
                self._db.run(_SESSION.format(STATEMENT_MS, LOCK_MS, IDLE_MS))
                self._db.run(f"SET search_path = {quoted(target.schema)}")
        except BaseException:
            self.close()
            raise

    def run(self, statement: str, values: Sequence[Any] = ()) -> list[list[Any]]:
        """Run a statement with ``?`` for values, prepared at its first use, and return its rows."""
        with self._translated():
            found = self._prepared.get(statement)
            if found is None:
                text, names = _named(statement)
                found = self._prepared[statement] = (self._db.prepare(text), names)
            prepared, names = found
            return prepared.run(**dict(zip(names, values, strict=True))) or []

    def script(self, statements: str) -> list[list[Any]]:
        """Run statements without values, in one message and by default one transaction; return
        their rows.
        """
        with self._translated():
            return self._db.run(statements) or []

    def copy_in(self, into: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Insert rows by COPY; ``into`` names the table and its columns."""
        with self._translated():
            self._db.run(f"COPY {into} FROM STDIN (FORMAT BINARY)", stream=pieces)

    def copy_out(self, query: str) -> Rows:
        """Return the rows of a query without values, by COPY."""
        rows = Rows()
        with self._translated():
            self._db.run(f"COPY ({query}) TO STDOUT (FORMAT BINARY)", stream=rows)
        return rows

    def end_transaction(self, statements: str) -> list[list[Any]]:
        """Run a script that ends a transaction, and return its rows.

        Raise StoreUnavailable if the server warns: that means no standby has confirmed the commit,
        so its outcome is unknown.
        """
        self._db.notices.clear()
        rows = self.script(statements)
        if any(n.get(b"V") == b"WARNING" for n in self._db.notices):
            self.broken = True
            raise StoreUnavailable(
                "PostgreSQL stopped waiting for a standby, so the outcome of the commit is unknown"
            )
        return rows

    @property
    def pid(self) -> int:
        """Return the id of the server's process for this session."""
        found: int = self.script("SELECT pg_backend_pid()")[0][0]
        return found

    def close(self) -> None:
        self.broken = True
        db: Any = getattr(self, "_db", None)
        with suppress(Exception):
            db.close()
        self._sock.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except native.DatabaseError as error:
            raise self._refusal(error) from error
        except (
            native.InterfaceError,
            native.Error,
            OSError,
            AttributeError,
            struct_error,
        ) as error:
            self.broken = True  # pg8000 raises AttributeError on a connection that is closed
            before: BaseException | None = error
            while before is not None and not isinstance(before, native.DatabaseError):
                before = before.__context__
            if before is not None:  # the server sent the reason before it disconnected
                raise self._refusal(before) from error
            raise StoreUnavailable(f"the connection to PostgreSQL failed: {error}") from error
        except (KeyboardInterrupt, SystemExit):
            self.broken = True
            raise

    def _refusal(self, error: native.DatabaseError) -> CipherBoxError:
        about = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        self.state = str(about.get("C", ""))
        if self.state.startswith(_BROKEN):
            self.broken = True
        return _translate(self.state, str(about.get("M", error)))


def _translate(state: str, text: str) -> CipherBoxError:
    """Return our error for one of the server's."""
    for start, why in _SETUP.items():
        if state.startswith(start):
            return StoreError(f"PostgreSQL: {text}; {why.what}", remedy=why.remedy or None)
    return _CLASSES.get(state, StoreUnavailable)(f"PostgreSQL: {text}")


def quoted(name: str) -> str:
    """Return a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def _named(statement: str) -> tuple[str, list[str]]:
    """Replace ``?`` by pg8000's named parameters; return the statement and the names."""
    parts = statement.split("?")
    names = [f"v{n}" for n in range(len(parts) - 1)]
    return "".join(
        part + (f":{names[n]} " if n < len(names) else "") for n, part in enumerate(parts)
    ), names


def _connect(host: str, port: int) -> socket.socket:
    """Return a connected socket that detects a dead peer, by keepalives and a timeout for sent
    data that is not acknowledged.
    """
    try:
        if host.startswith("/"):
            sock = _connect_local(f"{host}/.s.PGSQL.{port}")
        else:
            sock = socket.create_connection((host, port), CONNECT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (
                ("TCP_KEEPIDLE", 5),
                ("TCP_KEEPINTVL", 2),
                ("TCP_KEEPCNT", 3),
                ("TCP_USER_TIMEOUT", 12_000),
            ):
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError as error:
        raise StoreUnavailable(
            f"PostgreSQL at {host}:{port} cannot be reached: {error.strerror or error}"
        ) from error
    sock.settimeout(SILENCE_S)
    return sock


def _connect_local(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _secured(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """Start TLS as PostgreSQL requires (its documentation, "SSL Session Encryption")."""
    sock.sendall(_SSL_REQUEST)
    if sock.recv(1) != b"S":
        raise StoreUnavailable(
            'PostgreSQL does not offer TLS; configure it there, or set tls = "off" here if the '
            "network between the two is trusted"
        )
    return context.wrap_socket(sock, server_hostname=host)


def tls_context(target: Target) -> ssl.SSLContext | None:
    """Return the TLS context of the settings, None without TLS; raise ConfigError if a file of it
    cannot be read.
    """
    if target.tls == "off":
        return None
    try:
        context = ssl.create_default_context(cafile=str(target.tls_ca) if target.tls_ca else None)
        if target.tls == "unverified":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if target.tls_certificate:
            context.load_cert_chain(target.tls_certificate, target.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[database] tls: {error}") from None
    return context
