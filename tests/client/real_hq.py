"""A real HQ in this process, over real TLS on loopback, behind a gate that tests may cut, hold
and count.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from cipherbox.client.client import Client, open_client
from cipherbox.client.enrol import JoinReport, join
from cipherbox.config.settings import ServerConfig, load_server_config
from cipherbox.server.app import serve
from cipherbox.server.operations.setup import init_hq

PREKEYS = 8


class Gate:
    """Forwards TCP to whatever port HQ has now."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.target: int | None = None
        self.accepted = 0
        self.back_held = False  # what HQ says is swallowed
        self._nursery = nursery
        self._open: set[trio.SocketStream] = set()
        self.address = ""

    async def start(self) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listener.socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._nursery.start_soon(trio.serve_listeners, self._handle, [listener])

    async def cut(self) -> None:
        """Cuts every connection."""
        for stream in list(self._open):
            await trio.aclose_forcefully(stream)

    async def _handle(self, client: trio.SocketStream) -> None:
        self.accepted += 1
        self._open.add(client)
        try:
            if self.target is None:
                return
            hq = await trio.open_tcp_stream("127.0.0.1", self.target)
            async with hq, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, hq, False, nursery)
                nursery.start_soon(self._pump, hq, client, True, nursery)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._open.discard(client)
            await trio.aclose_forcefully(client)

    async def _pump(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        back: bool,
        nursery: trio.Nursery,
    ) -> None:
        try:
            while data := await source.receive_some():
                if not (back and self.back_held):
                    await target.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class RealHq:
    """HQ's directory, its admin, and the running server."""

    directory: Path
    homes: Path
    gate: Gate
    nursery: trio.Nursery
    config: ServerConfig
    admin_home: Path
    offline_ca: Path | None = None
    websocket: str = ""
    _running: trio.CancelScope | None = None
    _stopped: trio.Event = attrs.Factory(trio.Event)

    async def start(self) -> None:
        server = attrs.evolve(
            self.config.server, listen="127.0.0.1:0", websocket_listen="127.0.0.1:0"
        )
        config = attrs.evolve(self.config, server=server)
        scope, self._stopped = trio.CancelScope(), trio.Event()
        stopped = self._stopped

        async def run(task_status: trio.TaskStatus[Any]) -> None:
            try:
                with scope:
                    await serve(config, task_status=task_status)
            finally:
                stopped.set()

        served = await self.nursery.start(run)
        self._running = scope
        self.gate.target = served.addresses[0][1]
        self.websocket = "wss://{}:{}/".format(*served.websocket[0])

    async def stop(self) -> None:
        assert self._running is not None
        self.gate.target = None
        self._running.cancel()
        await self._stopped.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def home(self, client_id: str) -> Path:
        return self.homes / client_id

    def admin(self, **options: Any) -> Any:
        return open_client(self.admin_home, **options)

    def client(self, client_id: str, **options: Any) -> Any:
        return open_client(self.home(client_id), **options)

    async def join(self, *client_ids: str, **options: Any) -> list[JoinReport]:
        reports = []
        async with self.admin() as admin:
            for name in client_ids:
                token = await admin.enrol(name, **options)
                reports.append(await join(self.home(name), token))
                few_prekeys(self.home(name))
        return reports

    def lines(self, client_id: str) -> list[dict[str, Any]]:
        """What a client received; a line that is being written now is not counted."""
        path = self.home(client_id) / "data" / "received_messages.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return [orjson.loads(line) for line in whole.splitlines()]


def few_prekeys(home: Path) -> None:
    """Making a hundred of them costs more than the rest of a test."""
    settings = home / "client.toml"
    text = settings.read_text("utf-8")
    few = text.replace("one_time_prekeys = 100", f"one_time_prekeys = {PREKEYS}")
    assert f"one_time_prekeys = {PREKEYS} " in few
    settings.write_text(few, "utf-8")


def copy_hq(source: Path, path: Path, address: str) -> None:
    """Copy an HQ that does not run, its admin and its clients, to a place with another address."""
    ignored = shutil.ignore_patterns("reserve", "lock")
    shutil.copytree(source, path, ignore=ignored, dirs_exist_ok=True)
    for settings in (
        path / "hq" / "cipherbox.toml",
        *path.glob("*/client.toml"),
        *path.glob("homes/*/client.toml"),
    ):
        text = settings.read_text("utf-8")
        text = re.sub(r'(?m)^(address|listen) = "[^"]*:[1-9]\d*"', rf'\1 = "{address}"', text)
        settings.write_text(text, "utf-8")


@asynccontextmanager
async def real_hq(
    path: Path,
    *,
    like: Path | None = None,
    offline_ca: Path | None = None,
    limits: dict[str, Any] | None = None,
) -> AsyncIterator[RealHq]:
    """An HQ that serves: a fresh one, or one ``like`` another that was made before with those
    who joined it.
    """
    async with trio.open_nursery() as nursery:
        gate = Gate(nursery)
        await gate.start()
        directory, admin_home = path / "hq", path / "admin"
        if like is not None:
            copy_hq(like, path, gate.address)
        else:
            init_hq(
                directory,
                address=gate.address,
                name="DC-HQ",
                listen="127.0.0.1:0",
                offline_ca=offline_ca,
                admin_id="admin",
                admin_home=admin_home,
            )
            (path / "homes").mkdir()
        config = load_server_config(directory)
        limits = {"stop_s": 1.0, "disk_reserve_bytes": 1 << 20, **(limits or {})}
        config = attrs.evolve(config, limits=attrs.evolve(config.limits, **limits))
        hq = RealHq(directory, path / "homes", gate, nursery, config, admin_home, offline_ca)
        await hq.start()
        try:
            yield hq
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(15):
                await hq.stop()
            nursery.cancel_scope.cancel()


__all__ = ["Client", "Gate", "RealHq", "copy_hq", "real_hq"]
