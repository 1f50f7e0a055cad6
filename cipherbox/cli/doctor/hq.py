"""`doctor` on HQ's machine: check everything that `serve` needs, and change nothing but leftovers.
HQ may be running.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cipherbox import clock
from cipherbox.cli.doctor.findings import (
    BAD,
    BUILT,
    GOOD,
    SOON_DAYS,
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
from cipherbox.cli.doctor.leftovers import check, of_hq, of_machine
from cipherbox.errors import Busy, CipherBoxError, ConfigError, Problem

if TYPE_CHECKING:
    from cipherbox.config.settings import ServerConfig

_ANSWER_S = 5.0
CA_SOON_DAYS = 365  # a root key has to come out of a safe
_SPARE_FILES = 256  # beside one for each connection


def look(directory: Path, *, clean: bool = False) -> list[Finding]:
    """Return all findings about the HQ in ``directory``; with ``clean`` remove leftovers."""
    from cipherbox.config.settings import load_server_config
    from cipherbox.portable import is_locked
    from cipherbox.server.ca.credentials import check_answered
    from cipherbox.server.operations.check import LOCK
    from cipherbox.server.operations.setup import UNFINISHED, is_unfinished

    begun, config = opening(directory, load_server_config)
    unfinished = not closed(directory) and is_unfinished(directory)
    if unfinished and not is_locked(directory / UNFINISHED):
        text = f"`init` or a restore into {directory} was killed"
        begun.append(Finding(BAD, "leftovers", text, "run it again: it starts anew"))
    if config is None:
        return begun
    begun.append(Finding(GOOD, "settings", f"{config.file} is in order"))
    try:
        check_answered(config)  # that the files of the CA's response exist
    except ConfigError as error:
        return [*begun, *findings_of("certificates", error)]
    files = collect([("files", lambda: _files(config))])
    running = is_locked(config.directory / LOCK)
    secrets: list[tuple[str, Check]] = [
        ("keys", lambda: _keys(config)),
        ("certificates", lambda: _certificates(config)),
        ("store", lambda: store_findings(config, running=running)),
    ]
    # without these rights each check would only repeat that finding
    if any(f.level == BAD and f.about == "rights" for f in files):
        secrets = [("rights", _not_looked)]
    checks: list[tuple[str, Check]] = [
        (
            "disk",
            lambda: disk(
                [config.database.path.parent, config.logging.directory or config.directory]
            ),
        ),
        ("leftovers", lambda: _leftovers(config, clean=clean)),
        *secrets,
        ("ports", lambda: _ports(config, running=running)),
        ("network", lambda: _path(config, running=running)),
        ("limits", lambda: _limits(config)),
    ]
    return [*begun, *files, *collect(checks)]


def _not_looked() -> Iterator[Finding]:
    text = "keys, certificates and the store were not checked: insufficient rights"
    yield Finding(WARN, "rights", text, "correct the rights, then run this again")


def _files(config: ServerConfig) -> Iterator[Finding]:
    from cipherbox.config.settings import is_credential
    from cipherbox.server.operations.check import places

    named = [
        config.encryption.service_key_file,
        config.encryption.database_key_file,
        config.tls.key,
    ]
    if not config.ca.offline:
        named.append(config.ca.issuing_key)
    found = list(file_rights(config.directory, [path for path in named if not is_credential(path)]))
    yield from found
    if any(f.level == BAD and f.about == "rights" for f in found):
        return
    for why in filter(None, places(config)):
        yield finding("rights", why)


def _leftovers(config: ServerConfig, *, clean: bool) -> Iterator[Finding]:
    from cipherbox.server.operations.backup import MANIFEST, unfinished_backups

    found = [*of_hq(config), *of_machine()]
    yield from check(found, f"cipherbox doctor {config.directory}", clean=clean)
    for path in unfinished_backups(config, config.directory.parent):
        if (path / MANIFEST).exists():
            text = f"{path} is a complete backup whose command was killed before it was named"
            yield Finding(WARN, "leftovers", text, "rename it; the next backup there removes it")


def _keys(config: ServerConfig) -> Iterator[Finding]:
    from cipherbox.server.operations.check import keys

    wrong = list(keys(config))
    for text in wrong:
        yield Finding(
            BAD,
            "keys",
            text,
            "restore the file from the backup, or give this command the credentials",
        )
    if not wrong:
        yield Finding(GOOD, "keys", "the secret keys can be read")


def _certificates(config: ServerConfig) -> Iterator[Finding]:
    from cipherbox.server.ca.credentials import certificates_in, load_certificate, read_material
    from cipherbox.server.directory.revocation_lists import ListReading, inspect_lists
    from cipherbox.server.operations.check import certificates

    server = "HQ renews it at its start and while it runs; if not, its log states the reason"
    if config.ca.offline:
        server = f"carry its request to the CA: cipherbox ca export FILE --hq {config.directory}"
    issuing = "renew it with the root's key: cipherbox ca renew"
    if config.ca.organization:
        issuing = "have the organization renew it: cipherbox manual pki"
    named = [
        ("the server certificate", load_certificate(config.tls.certificate), server, SOON_DAYS)
    ]
    named += [
        ("a CA's certificate", c, issuing, CA_SOON_DAYS)
        for c in certificates_in(config.tls.issuing)
    ]
    todo = "every client must join an HQ with a new root before: cipherbox manual pki"
    named.append(("the root certificate", load_certificate(config.tls.root), todo, CA_SOON_DAYS))
    for what, one, advice, soon in named:
        yield ends(
            "certificates", what, one.not_valid_after_utc, one.not_valid_before_utc, advice, soon
        )
    try:
        lists = inspect_lists(config, read_material(config, settle=False))
    except CipherBoxError:
        lists = ListReading({}, [])  # the problem is reported below
    for problem in dict.fromkeys(certificates(config)):
        yield finding("certificates", problem, "put certificate and key that belong together there")
    for problem in lists.refused:
        yield finding(
            "lists", problem, "put the complete, newest list of that CA there, and nothing else"
        )
    for listed in lists.found.values():
        end = listed.crl.next_update
        yield ends(
            "lists",
            f"the revocation list {listed.file}",
            end,
            min(end, BUILT),
            "put a newer one there",
            3,
        )


def store_findings(config: ServerConfig, *, running: bool) -> Iterator[Finding]:
    if config.database.kind == "postgresql":
        yield from _postgresql(config, running=running)
        return
    from cipherbox.store.sqlite.inspect import inspect_store

    try:
        found = inspect_store(config.database.path)
    except Busy as error:
        yield Finding(
            BAD,
            "store",
            str(error),
            "make room if the disk is full; else see the system's log: dmesg",
        )
        return
    yield Finding(
        GOOD, "store", f"{config.database.path}: schema {found.schema}, {found.size / 1e6:.1f} MB"
    )
    if found.problem:
        yield Finding(
            BAD,
            "store",
            found.problem,
            "stop HQ and restore the newest backup; keep the damaged file",
        )
    yield from clock_findings(config, found.newest_at, found.times)


def clock_findings(
    config: ServerConfig, log_at: int, times: dict[str, bytes], database_at: int = 0
) -> Iterator[Finding]:
    """Compare the clock with what HQ has recorded, and with the clock of its database's server, as
    HQ itself does.
    """
    from cipherbox.server.clock_guard import ClockGuard, Mark, Recorded
    from cipherbox.store.port import CLOCK, WATERMARK

    recorded = Recorded(Mark.decode(times.get(CLOCK)), log_at, database_at)
    guard = ClockGuard(
        lambda: config.clock, recorded, clock.now_ms, clock.elapsed_s, clock.boot_id()
    )
    if guard.doubt:
        yield finding("clock", guard.doubt)
    elif log_at or recorded.mark is not None:
        yield Finding(GOOD, "clock", "agrees with what HQ has recorded")
    if clock.switch:
        text = f"{clock.SWITCH} moves the clock for a test"
        yield Finding(BAD, "clock", text, f"unset {clock.SWITCH}")
    if (watermark := int(times.get(WATERMARK, b"0"))) > clock.now_ms():
        until = f"{datetime.fromtimestamp(watermark / 1000, UTC):%Y-%m-%d %H:%M} UTC"
        yield Finding(
            BAD,
            "clock",
            f"HQ refuses all envelopes until {until}: records were deleted while its clock was "
            "ahead",
            "an admin sets that time back: cipherbox clock watermark",
        )


def _postgresql(config: ServerConfig, *, running: bool) -> Iterator[Finding]:
    from cipherbox.server.operations.open_store import target_of
    from cipherbox.store.postgres import schema
    from cipherbox.store.postgres.inspect import inspect_store

    todo = "check that PostgreSQL runs and is reachable, and pg_hba.conf: cipherbox manual howto-hq"
    try:
        found = inspect_store(target_of(config.database))
    except CipherBoxError as error:
        yield from findings_of("store", error, todo)
        return
    yield Finding(
        GOOD,
        "store",
        f"PostgreSQL at {found.where}: version {found.version}, answers in {found.ms:.0f} ms",
    )
    newest = len(schema.scripts())
    if found.schema is not None and found.schema > newest:
        text = (
            f"the database is of a newer program (version {found.schema}; this one knows {newest})"
        )
        yield Finding(BAD, "store", text, "install the newer cipherbox.pyz that wrote it")
    elif found.schema is not None and found.schema < newest:
        text = (
            f"the database is of version {found.schema}, this program needs {newest}: HQ does not "
            "start on it"
        )
        yield Finding(
            BAD, "store", text, f"once no HQ runs at it: cipherbox store upgrade {config.directory}"
        )
    if found.schema is None:
        yield Finding(
            BAD,
            "store",
            f"schema {config.database.schema} holds no HQ",
            "check the setting database.schema",
        )
    elif found.holder and not running:
        text = f"another HQ writes this database: {found.holder}"
        yield Finding(WARN, "store", text, "this one would be its standby")
    for one in found.standbys:
        yield Finding(GOOD, "standby", f"{one.name} waits to take over{_from(one.address)}")
    database_at = clock.now_ms() + int(found.clock_s * 1000)
    yield from clock_findings(config, found.newest_at, found.times, database_at)
    if abs(found.clock_s) > 5:
        yield Finding(
            WARN, "clock", f"PostgreSQL's clock differs by {found.clock_s:.0f} s", "set both by NTP"
        )


def _from(address: str) -> str:
    return f", connected from {address}" if address else ""


def _ports(config: ServerConfig, *, running: bool) -> Iterator[Finding]:
    from cipherbox.server.operations.port_check import wanted

    for setting, host, port in wanted(config):
        yield _answers(setting, host, port) if running else _free(setting, host, port)


def _answers(setting: str, host: str, port: int) -> Finding:
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        socket.create_connection((target, port), _ANSWER_S).close()
    except OSError as error:
        text = f"{setting}: HQ runs, and {target}:{port} does not answer: {error.strerror or error}"
        todo = "were settings changed since its start? cipherbox drain, then start it again"
        return Finding(BAD, "ports", text, todo)
    return Finding(GOOD, "ports", f"{setting}: HQ listens on {host}:{port}")


def _free(setting: str, host: str, port: int) -> Finding:
    from cipherbox.server.operations.port_check import taken

    if why := taken(host, port):
        problem = Problem(f"{setting}: {why.what}", why.remedy)
        return finding("ports", problem, "set another address or port")
    return Finding(GOOD, "ports", f"{setting}: {host}:{port} is free for HQ, which is not running")


def _path(config: ServerConfig, *, running: bool) -> Iterator[Finding]:
    """Check the path that clients take to HQ, as far as possible from here."""
    import trio

    from cipherbox.net.connecting import connect
    from cipherbox.net.tls import client_context
    from cipherbox.server.ca.credentials import load_certificate

    if not running:
        yield Finding(
            WARN,
            "network",
            "HQ is not running here, so connecting to it was not tried",
            f"start it: cipherbox serve {config.directory}",
        )
        return
    root = load_certificate(config.tls.root)

    async def reach(address: str) -> None:
        async with trio.open_nursery() as nursery:
            stream = await connect(address, client_context(root), nursery, timeout_s=_ANSWER_S)
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()

    for address in filter(None, (part.strip() for part in config.server.address.split(","))):
        try:
            trio.run(reach, address)
        except (CipherBoxError, BaseExceptionGroup) as error:
            from cipherbox.cli.exits import leaf

            yield Finding(
                WARN,
                "network",
                f"{address}, where clients look for HQ: {leaf(error)}",
                "from inside this may be normal; try cipherbox doctor on a client's machine",
            )
        else:
            yield Finding(GOOD, "network", f"HQ answers at {address}, with its own certificate")


def _limits(config: ServerConfig) -> Iterator[Finding]:
    from cipherbox.portable import open_files

    found, wanted = open_files(), config.limits.connections + _SPARE_FILES
    if found and found[1] < wanted:
        yield Finding(
            WARN,
            "limits",
            f"a process of this user may open {found[1]} files; HQ may need {wanted}",
            "the service's unit raises it (LimitNOFILE); by hand: ulimit -n",
        )
