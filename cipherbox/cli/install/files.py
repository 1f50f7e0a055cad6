"""Files of an installed version outside of its tree: units, man page, shell completion."""

from __future__ import annotations

from importlib.resources import files

from click.shell_completion import get_completion_class

from cipherbox.cli.install.places import CLIENT, SERVER, Places
from cipherbox.cli.man_page import man_page
from cipherbox.portable import WINDOWS

UNITS = {
    SERVER: (
        "cipherbox.service",
        "cipherbox.socket",
        "cipherbox-websocket.socket",
        "cipherbox-agent@.service",
    ),
    CLIENT: ("cipherbox-agent@.service",),
}
COMPLETION = {
    "bash": "bash-completion/completions/cipherbox",
    "zsh": "zsh/site-functions/_cipherbox",
    "fish": "fish/vendor_completions.d/cipherbox.fish",
}


def outside(places: Places, parts: list[str], *, units: bool) -> dict[str, bytes]:
    """Return the files by path without the first slash."""
    if WINDOWS:
        return {}
    found = {places.share / "man/man1/cipherbox.1": man_page().encode()}
    for shell, path in COMPLETION.items():
        found[places.share / path] = completion_script(shell).encode()
    if units:
        names = (
            {name for part in parts for name in UNITS[part]}
            if places.system
            else {"cipherbox-agent.service"}
        )
        for name in names:
            found[places.units / name] = unit(name)
    return {path.relative_to(path.anchor).as_posix(): data for path, data in found.items()}


def unit(name: str) -> bytes:
    """Return one of systemd's units."""
    return files("cipherbox").joinpath("units", name).read_bytes()


def completion_script(shell: str) -> str:
    """Return the script that makes the shell complete the commands."""
    from cipherbox.cli.commands import COMPLETE_VARIABLE
    from cipherbox.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    return str(kind(cli, {}, "cipherbox", COMPLETE_VARIABLE).source())
