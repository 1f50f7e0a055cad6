"""`alerts`: test the notification channels and list the alerts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import home_of
from cipherbox.cli.options import HQ_DIRECTORY, hq_settings, json_option
from cipherbox.cli.running import run

if TYPE_CHECKING:
    from cipherbox.config.alerts import AlertSettings

_hq_option = click.option(
    "--hq", type=HQ_DIRECTORY, metavar="DIRECTORY", help="HQ's alerts instead of this client's."
)


@click.group()
def alerts() -> None:
    """Test and list the alerts that [alerts] in the settings of HQ and of each client sends."""


@alerts.command("test")
@_hq_option
@json_option
@click.pass_context
def alerts_test(ctx: click.Context, hq: Path | None, as_json: bool) -> int:
    """Send a test through every configured channel, and print the results."""
    from cipherbox.alerting import try_ways, ways
    from cipherbox.cli.output import print_json, safe, say
    from cipherbox.errors import ConfigError

    name, _, settings = _settings_of(ctx, hq)
    if not ways(settings):
        raise ConfigError(
            "no channel is configured",
            remedy="set command, webhook or mail in [alerts] (cipherbox manual operations)",
        )
    found = run(try_ways, settings, name)
    if as_json:
        print_json({way: {"taken": not why, "reason": why} for way, why in found.items()})
    else:
        for way, why in found.items():
            say(f"{way + ':':<9}{'not taken: ' + safe(why) if why else 'taken'}")
    return Exit.NETWORK if any(found.values()) else Exit.OK


@alerts.command("list")
@_hq_option
@json_option
@click.pass_context
def alerts_list(ctx: click.Context, hq: Path | None, as_json: bool) -> None:
    """List the alerts that were sent and are not over."""
    from cipherbox.alerting import Teller
    from cipherbox.cli.output import print_json, safe, table, time_text

    name, directory, settings = _settings_of(ctx, hq)
    rows = Teller(name, settings, directory).known().values()
    if as_json:
        print_json(
            [
                {**row.alert._asdict(), "since": int(row.since * 1000), "told": row.told}
                for row in rows
            ]
        )
        return
    table(
        ("alert", "since", "told", "text"),
        [
            (
                row.alert.name,
                time_text(int(row.since * 1000)),
                "yes" if row.told else "no",
                safe(row.alert.text),
            )
            for row in rows
        ],
        empty="no alerts",
        drop=("told", "since"),
    )


def _settings_of(ctx: click.Context, hq: Path | None) -> tuple[str, Path, AlertSettings]:
    """Return the name of HQ or of this client, its directory, and its alert settings."""
    from cipherbox.config.settings import load_client_config

    if hq is not None:
        server = hq_settings(hq)
        return server.server.name, server.directory, server.alerts
    client = load_client_config(home_of(ctx))
    return client.client_id, client.home, client.alerts
