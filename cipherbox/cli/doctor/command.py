"""`doctor`: find problems on this machine and what to do about them."""

from __future__ import annotations

from pathlib import Path

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import home_of
from cipherbox.cli.options import HQ_DIRECTORY, json_option

_MARKS = {"good": "ok", "warning": "!!", "wrong": "XX"}


@click.command()
@click.argument("directory", type=HQ_DIRECTORY, required=False)
@click.option("--all", "everything", is_flag=True, help="Include checks that passed.")
@click.option("--clean", is_flag=True, help="Remove what killed commands left behind.")
@json_option
@click.pass_context
def doctor(
    ctx: click.Context, directory: Path | None, everything: bool, clean: bool, as_json: bool
) -> int:
    """Diagnose the HQ in DIRECTORY, or this client (--home), and print remedies.

    Checks settings, files, permissions, keys, certificates, clock, disk, ports, the store and the
    connection to HQ. Changes nothing without --clean, and works while HQ runs. Exits with 5 if
    something is wrong, with 0 if there are at most warnings.

    --clean removes unfinished files that no running command is using, and prints each. It never
    removes what may be the only copy of a message.
    """
    from cipherbox.cli.doctor.findings import BAD, GOOD
    from cipherbox.cli.output import explain, print_json, safe, say

    if directory is not None:
        from cipherbox.cli.doctor.hq import look

        found = look(directory, clean=clean)
    else:
        from cipherbox.cli.doctor import client as doctor_client

        found = doctor_client.look(ctx, home_of(ctx), clean=clean)
    wrong = sum(f.level == BAD for f in found)
    if as_json:
        print_json([f._asdict() for f in found])
        return Exit.CONFIG if wrong else Exit.OK
    for finding in found:
        if everything or finding.level != GOOD:
            explain(f"{_MARKS[finding.level]}  {finding.about + ':':<14}", safe(finding.text))
            if finding.todo:
                explain(f"    {'':<14}-> ", safe(finding.todo))
    warnings = sum(f.level == "warning" for f in found)
    good = len(found) - wrong - warnings
    say(f"{good} good, {warnings} to look at, {wrong} wrong.")
    return Exit.CONFIG if wrong else Exit.OK
