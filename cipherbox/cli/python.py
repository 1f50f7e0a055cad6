"""`python`: run programs with CipherBox's library, also where only the one file is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["--help"],
    }
)
@click.argument("script", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def python(script: str | None, arguments: tuple[str, ...]) -> int:
    """Run SCRIPT with CipherBox's Python and libraries; - is standard input, no SCRIPT a prompt.

    \b
    cipherbox manual example-sender > sender.py
    cipherbox python sender.py ~/.cipherbox CA-RC 'Sample 17 is ready'
    """
    import runpy
    import traceback

    # the one file writes bytecode into its own folder; the program's folders are the user's
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    if script is None:
        import code

        code.interact(
            f"Python {sys.version.split()[0]} with cipherbox; Ctrl-D ends it.", exitmsg=""
        )
        return 0
    if script != "-" and not Path(script).is_file():
        raise click.UsageError(f"No such file: {script!r}.")
    sys.argv = [script, *arguments]
    try:
        if script == "-":
            sys.path.insert(0, "")
            source = compile(sys.stdin.read(), "<stdin>", "exec")
            exec(source, {"__name__": ("__main__"), "__builtins__": __builtins__})  # noqa: S102 - what was asked for
        else:
            sys.path.insert(0, str(Path(script).resolve().parent))
            runpy.run_path(script, run_name="__main__")
    except SystemExit:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the script's own error, shown as Python shows it
        inner = error.__traceback__
        while inner is not None and inner.tb_frame.f_code.co_filename not in (script, "<stdin>"):
            inner = inner.tb_next
        traceback.print_exception(type(error), error, inner or error.__traceback__)
        return 1
    return 0
