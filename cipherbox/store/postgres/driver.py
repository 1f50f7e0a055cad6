"""The only file that knows pg8000: one connection, statements prepared once, COPY, and what its
errors mean here.

Rules.
1. A connection on which anything went wrong that is not an answer of the server to one statement is
   broken; it is closed and never used again.
2. Values are bound, never written into a statement.  Where text must name a schema or table it is
   quoted here.
3. Plans must not hang on statistics that lag behind: HQ's sessions take an index wherever there is
   one.
4. Nothing waits for ever: a connection attempt, a statement and a lock each have a deadline, and so
   has silence on the line.  COMMIT may have to wait for a synchronous standby: PostgreSQL's
   deadlines do not count for that, but the socket's does.
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
    "3D": Problem("there is no such database", "create it, or correct the name"),
    "42501": Problem("the user lacks a right"),
}
_SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
_BROKEN = ("08", "57P", "25006", "25P")  # after these a connection is of no use


class PostgresConnection:
    """One session.  Methods raise what `translated` makes of errors."""

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
        self.state = ""  # SQLSTATE of the last refusal
        self._prepared: dict[str, tuple[Any, list[str]]] = {}
        self._sock = _dial(host, port)
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
        """One statement with ``?`` for values; prepared at first use."""
        with self._translated():
            found = self._prepared.get(statement)
            if found is None:
                text, names = _named(statement)
                found = self._prepared[statement] = (self._db.prepare(text), names)
            prepared, names = found
            return prepared.run(**dict(zip(names, values, strict=True))) or []

    def script(self, statements: str) -> list[list[Any]]:
        """Statements without values, in one message and one transaction unless they say
        otherwise; their rows.
        """
        with self._translated():
            return self._db.run(statements) or []

    def copy_in(self, into: str, pieces: Iterable[bytes | memoryview]) -> None:
        """``into``: table and columns."""
        with self._translated():
            self._db.run(f"COPY {into} FROM STDIN (FORMAT BINARY)", stream=pieces)

    def copy_out(self, query: str) -> Rows:
        """Rows of a query that takes no values."""
        rows = Rows()
        with self._translated():
            self._db.run(f"COPY ({query}) TO STDOUT (FORMAT BINARY)", stream=rows)
        return rows

    def settle(self, statements: str) -> list[list[Any]]:
        """A script that ends a transaction.  A server that warns meanwhile says that no standby
        has it yet, which is as good as no answer: StoreUnavailable.
        """
        self._db.notices.clear()
        rows = self.script(statements)
        if any(n.get(b"V") == b"WARNING" for n in self._db.notices):
            self.broken = True
            raise StoreUnavailable(
                "PostgreSQL gave up waiting for a standby; whether the commit is safe is not known"
            )
        return rows

    @property
    def pid(self) -> int:
        """Of the server's process for this session."""
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
            raise self._said(error) from error
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
            if before is not None:  # the server said why before it hung up
                raise self._said(before) from error
            raise StoreUnavailable(f"the connection to PostgreSQL failed: {error}") from error
        except (KeyboardInterrupt, SystemExit):
            self.broken = True
            raise

    def _said(self, error: native.DatabaseError) -> CipherBoxError:
        about = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        self.state = str(about.get("C", ""))
        if self.state.startswith(_BROKEN):
            self.broken = True
        return _plain(self.state, str(about.get("M", error)))


def _plain(state: str, text: str) -> CipherBoxError:
    """What the server's refusal means to HQ."""
    for start, why in _SETUP.items():
        if state.startswith(start):
            return StoreError(f"PostgreSQL: {text}; {why.what}", remedy=why.remedy or None)
    return _CLASSES.get(state, StoreUnavailable)(f"PostgreSQL: {text}")


def quoted(name: str) -> str:
    """An identifier."""
    return '"' + name.replace('"', '""') + '"'


def _named(statement: str) -> tuple[str, list[str]]:
    """``?`` to the marks pg8000 knows."""
    parts = statement.split("?")
    names = [f"v{n}" for n in range(len(parts) - 1)]
    return "".join(
        part + (f":{names[n]} " if n < len(names) else "") for n, part in enumerate(parts)
    ), names


def _dial(host: str, port: int) -> socket.socket:
    """A connected socket that notices a dead peer: keepalives, and a bound for what is sent and
    not acknowledged.
    """
    try:
        if host.startswith("/"):
            sock = _dial_here(f"{host}/.s.PGSQL.{port}")
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


def _dial_here(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _secured(sock: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """TLS as PostgreSQL begins it (its documentation, "SSL Session Encryption")."""
    sock.sendall(_SSL_REQUEST)
    if sock.recv(1) != b"S":
        raise StoreUnavailable(
            'PostgreSQL does not speak TLS: set it up there, or here tls = "off" if nobody else '
            "is on the line"
        )
    return context.wrap_socket(sock, server_hostname=host)


def tls_context(target: Target) -> ssl.SSLContext | None:
    """As the settings say; None without TLS.  ConfigError when a file of it cannot be read."""
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
