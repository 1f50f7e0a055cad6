"""`version` and `completion`, which need neither a network nor a home."""

from __future__ import annotations

import sys

import click

import cipherbox


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def version(as_json: bool) -> None:
    """Print the version."""
    python = ".".join(map(str, sys.version_info[:3]))
    if as_json:
        click.echo(f'{{"cipherbox":"{cipherbox.__version__}","python":"{python}"}}')
    else:
        click.echo(f"CipherBox {cipherbox.__version__} (Python {python})")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    eval "$(cipherbox completion bash)"          in ~/.bashrc
    eval "$(cipherbox completion zsh)"           in ~/.zshrc
    cipherbox completion fish | source           in ~/.config/fish/config.fish
    """
    from cipherbox.cli.install.files import completion_script

    click.echo(completion_script(shell), nl=False)
