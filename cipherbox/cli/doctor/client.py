"""`doctor` on a client's machine: files, clock, certificate, and the path to HQ step by step."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cipherbox import clock
from cipherbox.cli.doctor.findings import (
    BAD,
    CLOCK,
    GOOD,
    NAMED,
    SETTINGS,
    WARN,
    Check,
    Finding,
    closed,
    collect,
    disk,
    ends,
    file_rights,
    finding,
    findings_of,
    opening,
)
from cipherbox.cli.doctor.leftovers import check, of_client, of_machine
from cipherbox.errors import BundleError, CipherBoxError, NetworkError, PasswordError, StoreError
from cipherbox.readable import Sentence

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.home import Home
    from cipherbox.config.proxies import Proxy
    from cipherbox.config.settings import ClientConfig

_ANSWER_S = 10.0
_SKEW_S, _SKEW_BAD_S = 60, 24 * 3600  # HQ refuses ids from more than a day in the future
_REPLACED = Sentence(
    "if it is to be this client again, ask the admin for: cipherbox enroll CLIENT_ID --replace"
)
_LOST = Sentence("restore the home from its backup, or join again")
_PROXY = Sentence("correct [line] in client.toml, or HTTPS_PROXY")
_JOIN = Sentence("ask the admin for a token (cipherbox enroll) and run: cipherbox join")


def look(ctx: click.Context, home: Path, *, clean: bool = False) -> list[Finding]:
    """Return all findings about the client in ``home``; with ``clean`` remove leftovers."""
    from cipherbox.client.home import replaced
    from cipherbox.config.settings import CLIENT_FILE, load_client_config

    todo = _JOIN if not closed(home) and not (home / CLIENT_FILE).exists() else SETTINGS
    begun, config = opening(home, load_client_config, todo)
    if config is None:
        return begun
    begun.append(Finding(GOOD, "settings", f"{home}: {config.client_id} ({config.role})"))
    if why := replaced(home):
        begun.append(
            Finding(BAD, "home", Sentence("this home was replaced: {why}", why=why), _REPLACED)
        )
    files = collect([("files", lambda: _files(config))])
    checks: list[tuple[str, Check]] = [
        ("leftovers", lambda: _leftovers(config, clean=clean)),
        ("certificates", lambda: _certificates(config)),
        ("disk", lambda: disk([config.home])),
        ("network", lambda: _addresses(config)),
    ]
    # without these rights both checks would only repeat that finding
    if not any(f.level == BAD and f.about == "rights" for f in files):
        checks += [("log", lambda: _log(config)), ("network", lambda: _hq(ctx, config))]
    return [*begun, *files, *collect(checks)]


def _leftovers(config: ClientConfig, *, clean: bool) -> Iterator[Finding]:
    return check([*of_client(config), *of_machine()], "cipherbox doctor", clean=clean)


def _files(config: ClientConfig) -> Iterator[Finding]:
    names = ["local.key", "client.key", *(["keys.cbk"] if config.role != "admin" else [])]
    yield from file_rights(config.home, [config.home / name for name in names])


def _log(config: ClientConfig) -> Iterator[Finding]:
    """Check the state of HQ's signed log as this home knows it."""
    from contextlib import closing

    from cipherbox.client.log.heads import DATABASE, Heads

    if not (config.home / DATABASE).exists():
        return
    with closing(Heads(config.home)) as heads:
        known, newest = heads.contradiction(), heads.newest()
    if known is not None:
        what = (
            Sentence("show {file} to the admin and your correspondents", file=known[1])
            if known[1]
            else Sentence(
                "HQ sent it to this client only, so there is no evidence; inform the admin and "
                "your correspondents"
            )
        )
        todo = Sentence(
            "{what}; when you know what happened and want to continue: cipherbox audit accept "
            "(cipherbox manual log)",
            what=what,
        )
        text = Sentence("HQ's log contradicts itself, and nothing is sent: {why}", why=known[0])
        yield Finding(BAD, "log", text, todo)
    elif newest is not None:
        text = Sentence("HQ's log is verified up to entry {entry}", entry=newest.checkpoint.size)
        yield Finding(GOOD, "log", text)


def _certificates(config: ClientConfig) -> Iterator[Finding]:
    from cipherbox import pki

    for name, file in (
        (Sentence("this client's certificate"), "client.crt"),
        (Sentence("the root certificate"), "ca.crt"),
    ):
        path = config.home / file
        if not path.exists():
            yield Finding(BAD, "files", Sentence("{path} is missing", path=path), _JOIN)
            continue
        found = pki.load_pem(path.read_bytes(), str(path))[0]
        yield ends(
            "certificates",
            name,
            found.not_valid_after_utc,
            found.not_valid_before_utc,
            _JOIN,
        )


def _addresses(config: ClientConfig) -> Iterator[Finding]:
    """Check name and port of each address, without TLS, to tell a firewall from a wrong name."""
    from cipherbox.config.proxies import way_to
    from cipherbox.net.connecting import parse_address

    for address in (part.strip() for part in config.address.split(",")):
        host, port, _ = parse_address(address)
        try:
            way = way_to(host, port, config.line)
        except CipherBoxError as error:
            yield from findings_of("network", error, _PROXY)
            continue
        if way.proxy is not None:
            yield _through(way.proxy, address, host, port)
            continue
        try:
            places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            yield Finding(
                BAD,
                "network",
                Sentence(
                    "the name {host} cannot be resolved: {why}",
                    host=host,
                    why=error.strerror or error,
                ),
                Sentence("check the address in client.toml and this machine's DNS"),
            )
            continue
        began = time.monotonic()
        try:
            socket.create_connection((host, port), _ANSWER_S).close()
        except OSError as error:
            yield Finding(
                BAD,
                "network",
                Sentence(
                    "{address} ({ip}) does not answer: {why}",
                    address=address,
                    ip=places[0][4][0],
                    why=error.strerror or error,
                ),
                Sentence(
                    "check that HQ runs and that no firewall blocks it; a WebSocket address may "
                    "pass"
                ),
            )
        else:
            took = (time.monotonic() - began) * 1000
            text = Sentence(
                "{address} ({ip}) accepts connections, in {took} ms; directly, {why}",
                address=address,
                ip=places[0][4][0],
                took=f"{took:.0f}",
                why=way.why,
            )
            yield Finding(GOOD, "network", text)


def _through(proxy: Proxy, address: str, host: str, port: int) -> Finding:
    """Check the proxy, and the path through it as far as the proxy reports it."""
    import trio

    from cipherbox.net.proxy import connect_through

    async def attempt() -> None:
        with trio.fail_after(_ANSWER_S):
            await trio.aclose_forcefully(await connect_through(proxy, host, port))

    began = time.monotonic()
    try:
        trio.run(attempt)
    except trio.TooSlowError:
        return Finding(
            BAD,
            "network",
            Sentence(
                "{address} does not answer through the proxy {proxy} ({source})",
                address=address,
                proxy=proxy,
                source=proxy.source,
            ),
            Sentence("check that HQ runs and that this is the right proxy"),
        )
    except CipherBoxError as error:
        return finding("network", error.problems[0], _PROXY)
    took = (time.monotonic() - began) * 1000
    text = Sentence(
        "{address} accepts connections through the proxy {proxy} ({source}), in {took} ms",
        address=address,
        proxy=proxy,
        source=proxy.source,
        took=f"{took:.0f}",
    )
    return Finding(GOOD, "network", text)


def _hq(ctx: click.Context, config: ClientConfig) -> Iterator[Finding]:
    """Connect with this client's certificate: TLS, WELCOME, a comparison of the clocks, a PING."""
    import trio

    from cipherbox.cli.home import load_here

    try:
        home = load_here(ctx)
    except PasswordError as error:
        yield Finding(
            WARN,
            "keys",
            Sentence("{why}; HQ was not tried with this client's certificate", why=error.what),
            Sentence("run it on a terminal, or with --password-file"),
        )
        return
    except CipherBoxError as error:
        yield from findings_of("keys", error, _LOST)
        return
    yield Finding(GOOD, "keys", Sentence("the keys open, and belong to the certificate"))
    try:
        yield from trio.run(_meet, home)
    except (CipherBoxError, BaseExceptionGroup) as group:
        from cipherbox.cli.exits import advice, leaf

        one = leaf(group)
        if not isinstance(one, CipherBoxError):
            raise
        kinds = {NetworkError: "network", StoreError: "files"}
        about = next(
            (name for kind, name in kinds.items() if isinstance(one, kind)), "certificates"
        )
        yield from findings_of(about, one, advice(one) or NAMED)


async def _meet(home: Home) -> list[Finding]:
    import trio

    from cipherbox.client.client import open_client

    async with open_client(home, tries=1, timeout_s=_ANSWER_S) as client:
        began = trio.current_time()
        await client.ping()
        took = (trio.current_time() - began) * 1000
        assert client.hq is not None
        text = Sentence(
            "HQ ({software}) knows {client}; a PING takes {took} ms",
            software=client.hq.software,
            client=client.client_id,
            took=f"{took:.0f}",
        )
        found = [Finding(GOOD, "network", text)]
        skew_s = client.hq.server_time / 1000 - clock.now_s()
        if abs(skew_s) > _SKEW_S:
            level, seconds = BAD if abs(skew_s) > _SKEW_BAD_S else WARN, f"{abs(skew_s):.0f}"
            text = (
                Sentence("this clock is {seconds} s behind HQ's", seconds=seconds)
                if skew_s > 0
                else Sentence("this clock is {seconds} s ahead of HQ's", seconds=seconds)
            )
            found.append(Finding(level, "clock", text, CLOCK))
        else:
            text = Sentence("within {seconds} s of HQ's", seconds=f"{abs(skew_s):.0f}")
            found.append(Finding(GOOD, "clock", text))
        found.append(await _own_keys(client))
        if client.outbox_sender is not None:
            from cipherbox.client.outbox.folder_files import FolderFiles

            refused: Any = await client.outbox_sender.store(
                FolderFiles(client.outbox_sender.outbox).refused
            )
            if refused:
                newest = refused[-1]
                text = Sentence(
                    "{count} files were refused, {path} last: {why}",
                    count=len(refused),
                    path="/".join(newest.path),
                    why=newest.reason,
                )
                todo = Sentence("see them: cipherbox outbox list")
                found.append(Finding(WARN, "outbox", text, todo))
            rows = await client.list("queues", client.mailbox)
            waiting = sum(int(row["waiting"]) for row in rows)
            if waiting:
                text = Sentence("{count} envelopes wait at HQ", count=waiting)
                todo = Sentence("receive them: cipherbox receive")
                found.append(Finding(GOOD, "mailbox", text, todo))
        return found


async def _own_keys(client: Client) -> Finding:
    """Check that HQ serves only keys that this home made in this client's name."""
    try:
        await client.key_lifecycle.check_own()
    except BundleError as error:
        todo = Sentence("compare with them by telephone: cipherbox keys fingerprint")
        return Finding(BAD, "keys", str(error), todo)
    text = Sentence("HQ serves only keys that this home made in this client's name")
    return Finding(GOOD, "keys", text)
