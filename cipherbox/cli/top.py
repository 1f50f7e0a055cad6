"""`top`: a live view of a running HQ, over the admin's own certificate."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.home import require_admin
from cipherbox.cli.options import DURATION, json_option
from cipherbox.cli.running import run, run_until_stopped
from cipherbox.readable import age_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cipherbox.client.client import Client
    from cipherbox.client.home import Home

ONCE_S = 1.0  # between the two samples that a rate needs
_ROWS = 15  # of each table
_NUMBERS = ("", "  ", "depth", "oldest", "consumers", "connection")
# what is shown -> metric
RATES = {
    "published messages": "cipherbox_published_messages_total",
    "published envelopes": "cipherbox_published_envelopes_total",
    "delivered envelopes": "cipherbox_delivered_envelopes_total",
    "redelivered": "cipherbox_redelivered_envelopes_total",
    "acknowledged": "cipherbox_acked_envelopes_total",
    "dead letters": "cipherbox_dead_lettered_envelopes_total",
    "frames in": "cipherbox_frames_received_total",
    "frames out": "cipherbox_frames_sent_total",
    "bytes in": "cipherbox_received_bytes_total",
    "bytes out": "cipherbox_sent_bytes_total",
}
NOW = {
    "clients": "cipherbox_connected_clients",
    "waiting": "cipherbox_waiting_envelopes",
    "unacknowledged": "cipherbox_unacknowledged_envelopes",
    "oldest_s": "cipherbox_oldest_age_seconds",
    "memory_bytes": "process_resident_memory_bytes",
    "disk_free_bytes": "cipherbox_disk_free_bytes",
    "receipts_outstanding": "cipherbox_receipts_outstanding_envelopes",
}


class Snapshot:
    """A snapshot of HQ's metrics, alerts and connections."""

    def __init__(
        self,
        metrics: list[dict[str, Any]],
        alerts: list[dict[str, Any]],
        connections: list[dict[str, Any]],
    ):
        self.at = time.monotonic()
        self.alerts, self.connections = alerts, connections
        self.values: dict[str, float] = {
            m["name"]: m["value"] for m in metrics if "value" in m and not m["labels"]
        }
        self.histograms = {m["name"]: m for m in metrics if "count" in m and not m["labels"]}
        self.standbys = standbys(metrics)
        self.queues: dict[str, dict[str, float]] = {}
        self.days: dict[str, float] = {}
        for m in metrics:
            if "queue" in m["labels"]:
                self.queues.setdefault(m["labels"]["queue"], {})[m["name"]] = m["value"]
            elif "certificate" in m["labels"]:
                self.days[m["labels"]["certificate"]] = m["value"]

    def report(self, before: Snapshot) -> dict[str, Any]:
        """Return the report that is shown and that --json prints, with rates since ``before``."""
        seconds = max(self.at - before.at, 0.001)
        rates = {
            name: round((self.values[metric] - before.values[metric]) / seconds, 1)
            for name, metric in RATES.items()
        }
        times = {}
        for name in ("commit", "sync"):
            metric = f"cipherbox_{name}_duration_seconds"
            count = self.histograms[metric]["count"] - before.histograms[metric]["count"]
            total = self.histograms[metric]["sum"] - before.histograms[metric]["sum"]
            times[f"{name}_ms"] = round(1000 * total / count, 2) if count else 0.0
        return {
            "ready": bool(self.values["cipherbox_ready"]),
            "alerts": self.alerts,
            "rates": rates,
            "now": {name: self.values.get(metric, 0) for name, metric in NOW.items()},
            "times": times,
            "certificate_days": self.days,
            "standbys": self.standbys,
            "queues": [
                {
                    "queue": name,
                    "depth": int(q["cipherbox_queue_depth_envelopes"]),
                    "oldest_s": round(q["cipherbox_queue_oldest_age_seconds"], 1),
                    "consumers": int(q["cipherbox_queue_consumers"]),
                }
                for name, q in self.queues.items()
            ],
            "clients": self.connections,
        }


def standbys(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the HQs that wait to take over, as HQ's metrics name them."""
    return [
        {
            "standby": m["labels"]["standby"],
            "address": m["labels"]["address"],
            "waiting_s": m["value"],
        }
        for m in metrics
        if m["name"] == "cipherbox_standby_waiting_seconds"
    ]


def standby_text(one: dict[str, Any]) -> str:
    """Return a standby as a line of text."""
    where = f" at {one['address']}" if one["address"] else ""
    return f"standby: {one['standby']}{where}, for {age_text(one['waiting_s'])}"


async def take_snapshot(client: Client) -> Snapshot:
    """Ask HQ for a snapshot.  Raise Forbidden unless this client is an admin."""
    return Snapshot(
        await client.list("metrics"), await client.list("alerts"), await client.list("connections")
    )


@click.command()
@click.option("--once", is_flag=True, help="Print it once and exit, for scripts.")
@click.option(
    "--interval", type=DURATION, default="2s", show_default=True, help="Interval between updates."
)
@json_option
@click.pass_context
def top(ctx: click.Context, once: bool, interval: float, as_json: bool) -> None:
    """Show alerts, rates, queues and clients of the running HQ, live (admin), until Ctrl-C.

    Works from any machine with an admin's certificate and needs no metrics port. With --json each
    update is a line; without a terminal it is printed once.
    """
    import sys

    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import print_json

    if not 0.2 <= interval <= 3600:
        raise click.UsageError("An interval is 0.2s to 1h.")
    home = load_here(ctx)
    if once or (not as_json and not sys.stdout.isatty()):
        report = run(_once, home)
        print_json(report) if as_json else _print(report)
        return
    with suppress(KeyboardInterrupt):  # the only way to stop it
        if as_json:
            run_until_stopped(_lines, home, interval)
        else:
            run_until_stopped(_live, home, interval)


async def _once(home: Home) -> dict[str, Any]:
    import trio

    from cipherbox.client.client import open_client

    async with open_client(home) as client:
        require_admin(client)
        before = await take_snapshot(client)
        await trio.sleep(ONCE_S)
        return (await take_snapshot(client)).report(before)


async def _reports(
    client: Client, first_s: float, interval: float
) -> AsyncGenerator[dict[str, Any] | str, None]:
    """Yield a report each time, or the reason as text if HQ does not answer: it may be
    restarting.
    """
    import trio

    from cipherbox.errors import Forbidden, NetworkError, Refused

    before, wait = await take_snapshot(client), first_s
    while True:
        await trio.sleep(wait)
        wait = interval
        try:
            now = await take_snapshot(client)
        except Forbidden:  # no admin any more
            raise
        except (NetworkError, Refused) as error:
            yield f"HQ does not answer: {error}. Retrying; Ctrl-C stops."
            continue
        if now.values["process_start_time_seconds"] != before.values["process_start_time_seconds"]:
            before = now  # another process counts from 0
        yield now.report(before)
        before = now


async def _lines(home: Home, interval: float) -> None:
    from cipherbox.cli.output import print_json, warn
    from cipherbox.client.client import open_client

    async with open_client(home) as client:
        require_admin(client)
        async with aclosing(_reports(client, interval, interval)) as found:
            async for one in found:
                if isinstance(one, str):
                    warn(one)
                else:
                    print_json(one)


async def _live(home: Home, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from cipherbox.cli.output import safe
    from cipherbox.client.client import open_client

    async with open_client(home) as client:
        require_admin(client)
        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            async with aclosing(_reports(client, min(interval, ONCE_S), interval)) as found:
                async for one in found:
                    live.update(
                        Text(safe(one)) if isinstance(one, str) else view(one), refresh=True
                    )


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console

    Console().print(view(report))


def view(report: dict[str, Any]) -> RenderableType:
    """Return the report as tables, with all text of other parties made safe."""
    from rich.console import Group
    from rich.text import Text

    from cipherbox.cli.output import safe, size_text

    now, times, rates = report["now"], report["times"], report["rates"]
    state = "ready" if report["ready"] else "NOT READY"
    days = min(
        (left for name, left in report["certificate_days"].items() if name not in ("crl", "lists")),
        default=0.0,
    )
    head = (
        f"HQ is {state}: {now['clients']} clients, {now['waiting']} waiting, "
        f"{now['unacknowledged']} unacknowledged, oldest {age_text(now['oldest_s'])}\nmemory "
        f"{size_text(now['memory_bytes'])}, disk free {size_text(now['disk_free_bytes'])}, "
        f"commit {times['commit_ms']} ms (sync {times['sync_ms']} ms), first certificate ends in "
        f"{days:.0f} days"
    )
    head = "\n".join([head, *(safe(standby_text(one)) for one in report["standbys"])])
    alerts = [
        Text(f"{a['severity'].upper()}: {safe(a['text'])}", "bold red") for a in report["alerts"]
    ]
    pairs = [(name, _rate(name, value)) for name, value in rates.items()]
    half = (len(pairs) + 1) // 2
    flows = _grid(
        ("each second", "", " ", "  "),
        [(*a, *b) for a, b in zip(pairs[:half], pairs[half:], strict=True)],
        "",
    )
    queues = _grid(
        ("queue", "depth", "oldest", "consumers"),
        [
            (safe(q["queue"]), str(q["depth"]), age_text(q["oldest_s"]), str(q["consumers"]))
            for q in report["queues"]
        ],
        "every queue is empty",
    )
    clients = _grid(
        ("client", "role", "connection", "remote", "since", "newest request"),
        [
            (
                safe(c["name"]) or "-",
                c["role"],
                str(c["connection"]),
                safe(c["remote"]),
                _clock(c["connected_at"]),
                _clock(c["asked_at"]),
            )
            for c in sorted(report["clients"], key=lambda c: -c["asked_at"])
        ],
        "nobody is connected",
    )
    return Group(Text(head), *alerts, Text(), flows, Text(), queues, Text(), clients)


def _grid(heads: tuple[str, ...], rows: list[tuple[str, ...]], empty: str) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return Text(empty)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        grid.add_column(head, justify="right" if head in _NUMBERS else "left", no_wrap=True)
    for row in rows[:_ROWS]:
        grid.add_row(*(Text(cell) for cell in row))
    if len(rows) > _ROWS:
        grid.add_row(Text(f"and {len(rows) - _ROWS} more"))
    return grid


def _rate(name: str, value: float) -> str:
    from cipherbox.cli.output import size_text

    return size_text(max(0, int(value))) if name.startswith("bytes") else f"{value:.0f}"


def _clock(ms: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(ms / 1000)) if ms else "-"
