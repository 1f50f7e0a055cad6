"""The client of a command: its home, its keys, and work with an open connection."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from cipherbox import clock
from cipherbox.cli.commands import PASSWORD_FILE
from cipherbox.cli.exits import sentence
from cipherbox.cli.options import ClientId
from cipherbox.cli.password import ask, named_password, prompt_for
from cipherbox.cli.running import run
from cipherbox.errors import CipherBoxError, Forbidden

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.home import Home
    from cipherbox.config.settings import ClientConfig

T = TypeVar("T")

TRIES = 3
_HOME = "cipherbox.home"
_WARNED = "cipherbox.replaced"  # in a context's meta: the user was warned of the replaced home


def home_of(ctx: click.Context) -> Path:
    """Return the client's directory: --home, $CIPHERBOX_HOME, or ~/.cipherbox."""
    from cipherbox.config.settings import default_home

    given: Path | None = ctx.find_root().obj
    home = (given or default_home()).absolute()
    _say_replaced(ctx, home)
    return home


def _say_replaced(ctx: click.Context, home: Path) -> None:
    """Warn once that this home was replaced, even if the command does not contact HQ; not in
    `join`, which ends it.
    """
    from cipherbox.cli.output import safe, warn
    from cipherbox.client.home import replaced

    root = ctx.find_root()
    if root.meta.get(_WARNED) or ctx.info_name == "join":
        return
    root.meta[_WARNED] = True
    if why := replaced(home):
        warn(f"This home was replaced: {safe(why)}.")


def command_here(ctx: click.Context) -> str:
    """Return `cipherbox` with this command's --home and --password-file, for advice about the same
    client.
    """
    given = {"--home": ctx.find_root().obj, "--password-file": ctx.meta.get(PASSWORD_FILE)}
    return " ".join(
        ["cipherbox", *(f"{o} {shlex.quote(str(v))}" for o, v in given.items() if v is not None)]
    )


def load_here(ctx: click.Context, *, renews: bool = False) -> Home:
    """Return this command's home with its keys; a password is asked for at most once.

    ``renews``: the command runs long enough to renew the certificate; others warn when it is due.
    """
    from cipherbox.client.home import home_with
    from cipherbox.config.settings import load_client_config

    if _HOME not in ctx.meta:
        config = load_client_config(home_of(ctx))
        ctx.meta[_HOME] = home_with(config, unlock(ctx, config))
        if not renews and ctx.info_name != "renew":
            _warn_of_end(ctx, ctx.meta[_HOME])
    home: Home = ctx.meta[_HOME]
    return home


def keep_loaded(ctx: click.Context, home: Home) -> None:
    """Let `load_here` return this home, whose keys are open already."""
    ctx.meta[_HOME] = home


def unlock(ctx: click.Context, config: ClientConfig) -> bytes:
    """Return the local key.  A mistyped password is asked for again; one from a file is final."""
    from cipherbox.cli.output import warn
    from cipherbox.client.home import unlocked
    from cipherbox.client.keys.local_key import is_sealed
    from cipherbox.errors import PasswordError, PasswordNeeded

    if not is_sealed(config.home):
        return unlocked(config)
    try:
        return unlocked(config, named_password(ctx), warn)
    except PasswordNeeded as error:
        missing = error
    for left in reversed(range(TRIES)):
        typed = ask(prompt_for(config.home), missing)
        try:
            return unlocked(config, typed, warn)
        except PasswordError as error:
            if not left:
                raise
            warn(f"{sentence(str(error))}.")
    raise AssertionError("the loop returns or raises")


def _warn_of_end(ctx: click.Context, home: Home) -> None:
    """Warn that the certificate is due for renewal; a long-running command renews it instead."""

    from cipherbox.cli.output import warn
    from cipherbox.pki.certificates import is_due

    certificate = home.chain[0]
    if is_due(certificate):
        end = certificate.not_valid_after_utc
        ends = "ended" if end <= clock.now() else "ends"
        how = (
            "ask the admin for a new token"
            if ends == "ended"
            else f"renew it: {command_here(ctx)} keys renew"
        )
        warn(f"The certificate of {home.config.client_id} {ends} on {end:%Y-%m-%d}; {how}")


def with_client(ctx: click.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """Open this machine's client, do the work, close it.  Return the work's result."""
    from cipherbox.client.client import open_client

    home = load_here(ctx)

    async def main() -> T:
        async with open_client(home, renew=False) as client, suggesting(ctx, client):
            return await work(client)

    return run(main)


def with_client_offline(ctx: click.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """Like `with_client`, for work on local data, whether or not HQ can be reached."""
    from cipherbox.client.client import open_client

    home = load_here(ctx)

    async def main() -> T:
        async with (
            open_client(home, keep_trying=True, renew=False) as client,
            suggesting(ctx, client),
        ):
            return await work(client)

    return run(main)


def require_admin(client: Client) -> None:
    """Raise Forbidden unless this client is an admin, without asking HQ."""
    if client.role != "admin":
        raise Forbidden(
            f"only an admin may do that, and {client.client_id} is not one",
            remedy="use the admin's --home",
        )


def with_admin(ctx: click.Context, work: Callable[[Client], Awaitable[T]]) -> T:
    """Like `with_client`, for admins only; raise Forbidden for others, without asking HQ."""

    async def checked(client: Client) -> T:
        require_admin(client)
        return await work(client)

    return with_client(ctx, checked)


@asynccontextmanager
async def suggesting(ctx: click.Context, client: Client) -> AsyncIterator[None]:
    """Add a suggestion to errors about an unknown client: the id that may have been meant."""
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
