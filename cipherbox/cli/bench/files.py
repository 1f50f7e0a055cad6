"""`bench --files`: an agent sends the files in its folder, and a receiver writes them to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from cipherbox.client.client import Client

_REPORT_S = 0.2
_PIECE = 64 * 1024 * 1024  # of a file, written in one step


def settings(do: str) -> dict[str, Any]:
    """Return the settings of the measured client: files in its folder are complete, so the agent
    does not wait for them to settle.
    """
    from cipherbox.config.toml_file import AgentSettings

    return {"agent": AgentSettings(settle_s=0.0)} if do == "send-files" else {}


async def send(client: Client, task: dict[str, Any]) -> None:
    """Place the files in the folders of their centers, then run the agent until all are sent."""
    from cipherbox.apps.agent.agent import Agent
    from cipherbox.apps.agent.file_mover import OUTGOING
    from cipherbox.cli.bench.measured import measured, report, shares

    folder = client.home.path / "agent"
    for group, count in zip(
        task["groups"], shares(task["messages"], len(task["groups"])), strict=True
    ):
        place = folder / OUTGOING / "+".join(group)
        place.mkdir(parents=True)
        for number in range(count):
            with (place / f"result-{number:06d}.csv").open("wb") as file:
                for at in range(0, task["size"], _PIECE):
                    file.write(b"x" * min(_PIECE, task["size"] - at))
                    report(sealed=number)
    agent = Agent(client, folder)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            while agent.sent < task["messages"]:
                await trio.sleep(_REPORT_S)
                report(sealed=agent.sent)
            nursery.cancel_scope.cancel()

    report(**await measured(body))


async def receive(client: Client, task: dict[str, Any]) -> None:
    """Receive until all files are complete."""
    from cipherbox.cli.bench.measured import measured, report
    from cipherbox.client.receiving.receiver import Receiver

    receiver = Receiver(client, incoming=client.home.path / "incoming")

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver.keep)
            while receiver.received < task["messages"]:
                await trio.sleep(_REPORT_S)
                report(received=receiver.received)
            nursery.cancel_scope.cancel()

    report(**await measured(body), took_ms=[], received=receiver.received)
