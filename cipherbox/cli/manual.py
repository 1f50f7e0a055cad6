"""`manual`: list, search and show the package's pages, laid out and in a pager on a terminal.

A pipe gets the Markdown unchanged.  Only pages in the index below are found.
"""

from __future__ import annotations

import sys

import click

# kind -> page -> its purpose; formats are separate from the other reference pages
INDEX: dict[str, dict[str, str]] = {
    "Tutorials: learn it by doing": {
        "quickstart": "from nothing to a received message, on one machine",
        "tutorial-hq": "your first HQ: create, start, enrol clients, back up",
        "tutorial-lab": "your first lab: join, compare keys, send files, get proof",
        "tutorial-center": "your first center: join, receive, run your own program",
        "tutorial-folders": "a lab that uses only folders",
        "tutorial-exec": "a center that uses only a program",
    },
    "How-to: one task each": {
        "howto-hq": "clients, routes, two HQs, dead letters, monitoring, moving",
        "howto-lab": "sending: scripts, folders, bad connections, proof",
        "howto-center": "receiving: into a program, a database, several machines",
        "howto-keys": "compare, rotate, passwords, lost machines",
        "migrate": "from RabbitMQ, SFTP, AS2, mail, CipherBox's predecessors",
        "operations": "install, size, back up, upgrade, each disaster",
        "tools": "chat and pipe",
        "page": "messages, people and HQ's console in the browser",
    },
    "Reference: look it up": {
        "commands": "every command and option",
        "configuration": "every setting of HQ and of a client",
        "exit-codes": "what scripts can rely on",
        "clocks": "what a wrong clock does, and how to set it right",
        "metrics": "every metric, health checks, Prometheus and Grafana",
        "files-on-disk": "every file of HQ, of a client and of an installed system",
        "permissions": "who may do what, and every limit",
        "python-api": "the client library for programs",
        "store": "the database: tables, views, queries, retention",
        "glossary": "every term, in one line",
    },
    "Formats: reference, to the byte": {
        "protocol": "frames between a client and HQ",
        "envelope": "the sealed unit that is transmitted",
        "ids": "ids of envelopes and messages, and generations",
        "bundle": "a client's public keys",
        "receipt": "a recipient's signed statement",
        "log": "HQ's signed log",
        "token": "the one-time secret that enrols a client",
        "files": "files of any size, in parts",
        "rsa": "RSA keys, from OpenSSL and back",
        "pki": "certificates, enrolment, rotation, revocation, key files",
    },
    "Explanation: how and why": {
        "architecture": "layers, a message's path, commits, failover; diagrams",
        "delivery": "why nothing is lost or duplicated, with proof",
        "reliability": "which faults are tested, how, and what is not covered",
        "performance": "what messages cost, what bounds it, and how to measure it",
        "broker": "exchanges, queues, routes, order, checks, limits",
        "sessions": "the Double Ratchet between two clients",
        "security": "a summary of who can do what, and your duties",
        "threat-model": "what each adversary can and cannot do, with tests",
        "contributing": "a new frame, setting, metric, stanza type, error or command",
    },
}
# programs in manual/examples, printed as they are: cipherbox manual example-sender > sender.py
EXAMPLES = {
    "example-key-maker": "generate keys, enrol, export the public keys",
    "example-sender": "send a batch by route",
    "example-receiver": "declare a queue, bind it, receive each message once",
    "example-handshake": "a session between two programs, relayed by HQ",
}
PAGES = [page for kind in INDEX.values() for page in kind]
_LINES_SHOWN = 4  # of a page that a search finds
_WIDEST = 120  # columns; longer lines are hard to read


def _topics(context: click.Context, argument: click.Parameter, begun: str) -> list[str]:
    return [page for page in (*PAGES, *EXAMPLES) if page.startswith(begun)]


@click.command()
@click.argument("topic", required=False, shell_complete=_topics)
@click.option(
    "--search", "word", metavar="WORD", help="Show where WORD occurs, in all pages or in TOPIC."
)
@click.option("--no-pager", is_flag=True, help="Print the page without $PAGER.")
@click.option(
    "--man", is_flag=True, help="Print the man page cipherbox(1), generated from the commands."
)
def manual(topic: str | None, word: str | None, no_pager: bool, man: bool) -> None:
    """Show the manual page TOPIC; without it, list the pages.

    On a terminal a page is laid out for its width; a pipe or file gets Markdown.
    """
    if man:
        from cipherbox.cli.man_page import man_page

        click.echo(man_page(), nl=False)
        return
    pages = manual_pages()
    if topic in EXAMPLES:
        click.echo(example(topic), nl=False)
        return
    if topic is not None and topic not in pages:
        import difflib

        near = difflib.get_close_matches(topic, [*PAGES, *EXAMPLES], n=3) or [
            p for p in PAGES if topic and topic in p
        ]
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise click.UsageError(
            f"Unknown page {topic!r}.{hint} `cipherbox manual` lists the pages; `--search` "
            "searches them."
        )
    if word is not None:
        _search([topic] if topic else PAGES, pages, word)
    elif topic is None:
        _list()
    elif not sys.stdout.isatty():
        click.echo(pages[topic], nl=False)
    else:
        from cipherbox.cli.page_layout import laid_out

        page = laid_out(pages[topic], _WIDEST)
        if no_pager:
            click.echo(page, nl=False)
        else:
            click.echo_via_pager(page)


def _list() -> None:
    import shutil

    name = max(map(len, (*PAGES, *EXAMPLES))) + 4
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for kind, entries in (INDEX | {"Programs: to start from": EXAMPLES}).items():
        click.secho(f"\n{kind}" if kind != next(iter(INDEX)) else kind, bold=True)
        for page, line in entries.items():
            click.echo(click.wrap_text(line, width, f"  {page}".ljust(name), " " * name))
    click.secho("Next: cipherbox manual quickstart", err=True, fg="cyan")


def _search(names: list[str], pages: dict[str, str], word: str) -> None:
    """Print each page with the first lines that contain the word, and their sections."""
    found = False
    for name in names:
        section, hits = "", []
        for line in pages[name].splitlines():
            if line.startswith("#"):
                section = line.lstrip("# ")
            if word.lower() in line.lower():
                hits.append((section, line.strip(" #")))
        if not hits:
            continue
        found = True
        click.secho(f"{name}: {len(hits)} lines", bold=True)
        for section, line in hits[:_LINES_SHOWN]:
            click.echo(f"  [{section}] {_around(line, word)}")
    if not found:
        raise click.UsageError(
            f"No page has {word!r}. Try a shorter word; `cipherbox manual` lists the pages."
        )


def _around(line: str, word: str) -> str:
    """Return the line, shortened around the word."""
    start = max(0, line.lower().index(word.lower()) - 50)
    end = start + 100
    return ("…" if start else "") + line[start:end] + ("…" if len(line) > end else "")


def manual_pages() -> dict[str, str]:
    """Return every page of the manual as Markdown, by name."""
    from importlib.resources import files

    folder = files("cipherbox").joinpath("manual")
    return {
        entry.name.removesuffix(".md"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".md")
    }


def example(name: str) -> str:
    """Return an example program."""
    from importlib.resources import files

    file = name.removeprefix("example-").replace("-", "_") + ".py"
    return files("cipherbox").joinpath("manual", "examples", file).read_text("utf-8")


def title(page: str) -> str:
    """Return the page's heading."""
    return page.lstrip().splitlines()[0].lstrip("# ").strip() if page.strip() else ""
