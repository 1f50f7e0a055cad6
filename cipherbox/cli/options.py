"""What several commands share: option types, and running a piece of work with an open client."""

from __future__ import annotations

import gc
import re
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cipherbox.cli.main import PASSWORD_FILE
from cipherbox.errors import CipherBoxError, Forbidden, InvalidRequest
from cipherbox.limits import check_client_id, check_name

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.config.settings import DatabaseSettings, ServerConfig

T = TypeVar("T")

_TOLD = "cipherbox.replaced"  # in a context's meta: it was said that this home was replaced
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
    """``90``, ``90s``, ``15m``, ``12h`` or ``7d``, as seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip().lower())
        if not found:
            self.fail(f"{value!r} is no duration; say for example 90s, 15m, 12h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


# A directory that this user may not read has an error of its own, which names whose it is.
HQ_DIRECTORY = click.Path(path_type=Path, readable=False)
CLIENT_ID = ClientId()
EXCHANGE = Name("name of an exchange")
QUEUE = Name("name of a queue")
KEY = Name("routing key")
DURATION = Duration()

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def home_of(ctx: click.Context) -> Path:
    """The client's directory: --home, $CIPHERBOX_HOME, or ~/.cipherbox."""
    from cipherbox.config.settings import default_home

    given: Path | None = ctx.find_root().obj
    home = (given or default_home()).absolute()
    _say_replaced(ctx, home)
    return home


def _say_replaced(ctx: click.Context, home: Path) -> None:
    """Every command of a home that was replaced says so at once, also one that does not ask HQ;
    `join` ends it.
    """
    from cipherbox.cli.output import safe, warn
    from cipherbox.client.home import replaced

    root = ctx.find_root()
    if root.meta.get(_TOLD) or ctx.info_name == "join":
        return
    root.meta[_TOLD] = True
    if why := replaced(home):
        warn(f"This home was replaced: {safe(why)}.")


def hq_settings(directory: Path) -> ServerConfig:
    """The settings of an HQ whose files are about to be changed; ConfigError for root, where HQ
    is another user's.
    """
    from cipherbox.config.settings import load_server_config
    from cipherbox.errors import ConfigError
    from cipherbox.portable import is_root, owner_of

    config = load_server_config(directory)
    if is_root() and config.tls.root.exists() and (owner := owner_of(config.tls.root)) != "root":
        raise ConfigError(
            f"HQ's files belong to {owner}, who could not use what root writes; say it as that "
            f"user: sudo -u {owner} cipherbox ..."
        )
    return config


def command_here(ctx: click.Context) -> str:
    """`cipherbox`, with the --home and --password-file this command was given: for advice about
    this same client.
    """
    given = {"--home": ctx.find_root().obj, "--password-file": ctx.meta.get(PASSWORD_FILE)}
    return " ".join(
        ["cipherbox", *(f"{o} {shlex.quote(str(v))}" for o, v in given.items() if v is not None)]
    )


def sure(question: str, yes: bool) -> None:
    """Asks before what cannot be taken back.  Where nobody can be asked, --yes has to say it."""
    if yes:
        return
    if not (sys.stdin and sys.stdin.isatty()):
        raise click.UsageError(f"{question} Nobody can be asked here: say --yes.")
    click.confirm(question, abort=True, err=True)


def run(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Runs an async function to its end."""
    import trio

    from cipherbox.portable import keep_heap

    keep_heap()
    gc.freeze()  # what was imported stays
    # batches are tuples without cycles: looking through them is a tenth of the work
    gc.set_threshold(50_000, 20, 50)
    result: T = trio.run(work, *arguments)
    return result


def run_until_stopped(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """As `run`; Ctrl-C and SIGTERM end it in order, so that what it started ends too.  Then
    KeyboardInterrupt.
    """
    import trio

    from cipherbox.portable import stop_signals

    async def main() -> list[T]:
        found: list[T] = []
        with trio.open_signal_receiver(*stop_signals()) as signals:
            async with trio.open_nursery() as nursery:

                async def until_stopped() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(until_stopped)
                found.append(await work(*arguments))
                nursery.cancel_scope.cancel()
        return found

    done = run(main)
    if not done:
        raise KeyboardInterrupt
    return done[0]


@asynccontextmanager
async def suggesting(ctx: click.Context, client: Client) -> AsyncIterator[None]:
    """A block whose errors about a client that nobody knows say which one may have been meant."""
    from cipherbox.client.suggest import with_suggestion

    try:
        yield
    except CipherBoxError as error:
        given = [
            ctx.params.get(one.name or "")
            for one in ctx.command.params
            if isinstance(one.type, ClientId)
        ]
        names = [
            name for value in given for name in ([value] if isinstance(value, str) else value or ())
        ]
        found = await with_suggestion(client, error, names)
        if found is error:
            raise
        raise found from None


def with_client(ctx: click.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """Opens this machine's client, does the work, closes it."""
    from cipherbox.cli.password import load_here
    from cipherbox.client.client import open_client

    home = load_here(ctx)

    async def main() -> T:
        async with open_client(home, renew=False) as client, suggesting(ctx, client):
            return await work(client)

    return run(main)


def with_admin(ctx: click.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """As `with_client`, for what only an admin may do; Forbidden says so before HQ has to."""

    async def checked(client: Client) -> T:
        if client.role != "admin":
            raise Forbidden(
                f"only an admin may do that, and {client.client_id} is none; use the admin's --home"
            )
        return await work(client)

    return with_client(ctx, checked)


def database_settings(text: str) -> DatabaseSettings:
    """`[database]` from a command line: postgresql://..., or sqlite:PATH.  Files are named as
    seen from here.
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
