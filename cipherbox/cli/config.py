"""`config`: the settings in force, and whether HQ could start with them."""

from __future__ import annotations

from pathlib import Path

import click

from cipherbox.cli.exits import Exit, sentence
from cipherbox.cli.home import home_of
from cipherbox.cli.options import HQ_DIRECTORY, json_option


@click.group("config")
def config() -> None:
    """Show the effective settings, or check them."""


@config.command("show")
@click.argument("directory", type=HQ_DIRECTORY, required=False)
@json_option
@click.pass_context
def config_show(ctx: click.Context, directory: Path | None, as_json: bool) -> None:
    """Show every setting of HQ in DIRECTORY, or of this client, defaults included.

    Settings name files with secrets and contain none, so nothing shown is secret.
    """
    from cipherbox.cli.output import print_json, say
    from cipherbox.config.settings import load_client_config, load_server_config
    from cipherbox.config.show import settings_text, settings_values

    loaded = (
        load_server_config(directory) if directory is not None else load_client_config(home_of(ctx))
    )
    if as_json:
        print_json(settings_values(loaded))
    else:
        say(settings_text(loaded).rstrip())


@config.command("check")
@click.argument("directory", type=HQ_DIRECTORY)
@json_option
def config_check(directory: Path, as_json: bool) -> int:
    """Check HQ's settings in DIRECTORY, and the keys, certificates and addresses they name."""
    from cipherbox.cli.output import fail, print_json, say
    from cipherbox.config.settings import load_server_config
    from cipherbox.errors import ConfigError

    try:
        from cipherbox.server.operations.check import problems

        found = problems(load_server_config(directory))
    except ConfigError as error:
        found = [*error.problems]
    if as_json:
        print_json([{"problem": text} for text in found])
    elif found:
        for problem in found:
            fail(sentence(problem.what), sentence(problem.remedy))
    else:
        say(f"HQ can start on {directory}.")
    return Exit.CONFIG if found else Exit.OK
