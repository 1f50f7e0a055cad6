"""The interfaces that requests use: of HQ, and of the connection they arrived on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from cipherbox.broker.model import AnyCommand
from cipherbox.server.ca.exchange import CaExchange
from cipherbox.server.clock_guard import ClockGuard
from cipherbox.server.connection.admission import Admission
from cipherbox.server.connection.budget import Rate
from cipherbox.server.directory.bundles import Directory
from cipherbox.server.directory.enrolment import Enrolments
from cipherbox.server.directory.prekeys import PrekeyService
from cipherbox.server.operations.drain import Drain
from cipherbox.server.operations.reload import Difference
from cipherbox.server.operations.status import HqStatus
from cipherbox.server.transparency_log import TransparencyLog


class Services(HqStatus, Protocol):
    """The parts of HQ that answer requests; `HQ` is one."""

    @property
    def audit(self) -> TransparencyLog: ...

    @property
    def clock(self) -> ClockGuard: ...

    @property
    def admission(self) -> Admission: ...

    @property
    def directory(self) -> Directory: ...

    @property
    def enrolments(self) -> Enrolments: ...

    @property
    def prekeys(self) -> PrekeyService: ...

    @property
    def ca_exchange(self) -> CaExchange: ...

    @property
    def drain(self) -> Drain: ...

    @property
    def key_requests(self) -> Rate: ...

    @property
    def prekey_requests(self) -> Rate: ...

    @property
    def enrol_attempts(self) -> Rate: ...

    async def confirm_clock(self, client: str) -> int: ...

    def reload(self) -> list[Difference]: ...


class Requester(Protocol):
    """The connection that a request arrived on."""

    client: str
    serial: str
    address: str
    connection: int

    def need_admin(self) -> None: ...

    async def ask(self, command: AnyCommand) -> None: ...

    def log(self, message: str, **more: object) -> None: ...


# answers a frame; None: the engine answers it
Handler = Callable[[Services, Requester, Any], Awaitable[object | None]]
