"""The interface through which metrics, alerts and lists read a running HQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cipherbox.config.settings import ServerConfig
from cipherbox.server.ca.own_certificate import OwnCertificate
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.budget import Budgets
from cipherbox.server.connection.registry import Connections
from cipherbox.server.connection.unauthenticated import UnauthenticatedConnections
from cipherbox.server.directory.revocation_lists import RevocationLists
from cipherbox.server.directory.trust import Trust
from cipherbox.server.engine import Engine
from cipherbox.server.operations.retention import Retention
from cipherbox.server.operations.standbys import Standbys
from cipherbox.store.port import Store


class HqStatus(Protocol):
    """The readable state of an HQ."""

    @property
    def config(self) -> ServerConfig: ...

    @property
    def clock_ms(self) -> Callable[[], int]: ...

    @property
    def store(self) -> Store: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def trust(self) -> Trust: ...

    @property
    def lists(self) -> RevocationLists: ...

    @property
    def certificate(self) -> OwnCertificate: ...

    @property
    def retention(self) -> Retention: ...

    @property
    def standbys(self) -> Standbys: ...

    @property
    def connections(self) -> Connections: ...

    @property
    def unauthenticated(self) -> UnauthenticatedConnections: ...

    @property
    def memory(self) -> BackPressure: ...

    @property
    def budgets(self) -> Budgets: ...

    def unready(self) -> list[str]: ...
