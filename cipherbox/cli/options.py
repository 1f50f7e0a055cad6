"""Shared by several commands: option types, settings, and confirmation of irreversible actions."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cipherbox.errors import InvalidRequest
from cipherbox.limits import check_client_id, check_name

if TYPE_CHECKING:
    from cipherbox.config.settings import DatabaseSettings, ServerConfig

T = TypeVar("T")
R = TypeVar("R")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class ClientId(click.ParamType[str]):
    """A client id, checked before anything is sent."""

    name = "client_id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_client_id(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Name(click.ParamType[str]):
    """The name of an exchange or queue, or a routing key."""

    def __init__(self, what: str) -> None:
        self.name = what.rpartition(" ")[2]
        self._what = what

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_name(value, self._what)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[float]):
    """A duration such as ``90``, ``90s``, ``15m``, ``12h`` or ``7d``, converted to seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip().lower())
        if not found:
            self.fail(
                f"invalid duration {value!r}: use for example 90s, 15m, 12h or 7d", param, ctx
            )
        return float(found[1]) * _UNITS[found[2] or "s"]


# A directory that this user may not read has an error of its own, which names its owner.
HQ_DIRECTORY = click.Path(path_type=Path, readable=False)
CLIENT_ID = ClientId()
EXCHANGE = Name("name of an exchange")
QUEUE = Name("name of a queue")
KEY = Name("routing key")
DURATION = Duration()


def as_record(
    kind: Callable[..., R],
) -> Callable[[Callable[[click.Context, R], T]], Callable[..., T]]:
    """Decorate a command so that its parameters reach it as one record, an attrs class whose
    fields are named like them.
    """

    def decorate(work: Callable[[click.Context, R], T]) -> Callable[..., T]:
        @functools.wraps(work)
        def command(ctx: click.Context, **given: object) -> T:
            return work(ctx, kind(**given))

        return command

    return decorate


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def hq_settings(directory: Path) -> ServerConfig:
    """Return the settings of an HQ whose files will be changed.  Raise ConfigError for root if they
    belong to another user.
    """
    from cipherbox.config.settings import load_server_config
    from cipherbox.errors import ConfigError
    from cipherbox.portable import is_root, owner_of

    config = load_server_config(directory)
    if is_root() and config.tls.root.exists() and (owner := owner_of(config.tls.root)) != "root":
        raise ConfigError(
            f"HQ's files belong to {owner}, who could not use files written by root",
            remedy=f"run it as that user: sudo -u {owner} cipherbox ...",
        )
    return config


def sure(question: str, yes: bool) -> None:
    """Ask before an irreversible action; without a terminal, --yes is required."""
    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError(f"{question} Cannot prompt (not a terminal); pass --yes.")
    click.confirm(question, abort=True, err=True)


def database_settings(text: str) -> DatabaseSettings:
    """Return `[database]` for a command-line argument: postgresql://..., or sqlite:PATH.  Relative
    paths are resolved here.
    """
    import attrs

    from cipherbox.config.settings import DatabaseSettings, is_credential, with_url

    if text.startswith("sqlite:"):
        return DatabaseSettings(path=Path(text.removeprefix("sqlite:")).absolute())
    found = with_url(DatabaseSettings(), text)
    files = ("password_file", "tls_ca", "tls_certificate", "tls_key")
    named = {
        name: path
        for name in files
        if (path := getattr(found, name)) is not None and not is_credential(path)
    }
    return attrs.evolve(found, **{name: path.absolute() for name, path in named.items()})
