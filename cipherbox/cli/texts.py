"""`manual` and `version`: what needs neither a network nor a home."""

from __future__ import annotations

import sys

import click

import cipherbox

FIRST = (
    "quickstart", "delivery", "files", "tools", "commands", "configuration", "exit-codes", "architecture", "operations",
    "security",
    "threat-model",
)  # fmt: skip


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
    """Print what makes SHELL complete the commands and options of cipherbox.

    \b
    eval "$(cipherbox completion bash)"          in ~/.bashrc
    eval "$(cipherbox completion zsh)"           in ~/.zshrc
    cipherbox completion fish | source           in ~/.config/fish/config.fish
    """
    from cipherbox.cli.install_files import completion_script

    click.echo(completion_script(shell), nl=False)


@click.command()
@click.argument("topic", required=False)
@click.option("--man", is_flag=True, help="Print the man page cipherbox(1), made from the commands.")
def manual(topic: str | None, man: bool) -> None:
    """Read the manual page TOPIC; without one, list the pages."""
    if man:
        from cipherbox.cli.manpage import man_page

        click.echo(man_page(), nl=False)
        return
    pages = manual_pages()
    if topic is None:
        width = max(map(len, pages))
        for name in [*(n for n in FIRST if n in pages), *sorted(set(pages) - set(FIRST))]:
            click.echo(f"  {name:<{width}}  {title(pages[name])}")
        click.secho("Next: cipherbox manual quickstart", err=True, fg="cyan")
        return
    if topic not in pages:
        import difflib

        near = difflib.get_close_matches(topic, list(pages), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise click.UsageError(f"There is no page {topic!r}.{hint} `cipherbox manual` lists them.")
    if sys.stdout.isatty():
        click.echo_via_pager(pages[topic])
    else:
        click.echo(pages[topic], nl=False)


def manual_pages() -> dict[str, str]:
    """Every page of the manual: name -> Markdown."""
    from importlib.resources import files

    folder = files("cipherbox").joinpath("manual")
    return {
        entry.name.removesuffix(".md"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".md")
    }


def title(page: str) -> str:
    """The page's heading."""
    return page.lstrip().splitlines()[0].lstrip("# ").strip() if page.strip() else ""
