"""A revocation that a crash or a failed commit interrupts, after each of its steps, is finished."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cipherbox import clock, pki
from cipherbox.broker import model as m
from cipherbox.errors import StoreUnavailable
from cipherbox.pki.revocation_lists import make_crl, read_crl
from cipherbox.server.directory.enrolment import DONE
from cipherbox.server.log_statements import REVOKED
from cipherbox.store.port import Enrolment
from tests.client.waiting import until
from tests.server.hq import Running, running
from tests.server.test_lists import set_lists

NAME = "FL-LAB"
STEPS = ("log", "statement", "client", "list")


def fail_at(step: str, r: Running, patch: pytest.MonkeyPatch) -> None:
    """Let this step of a revocation fail, and with it those behind it."""
    engine, store = r.hq.engine, r.hq.store
    call, put = engine.call, store.put_setting

    def fails(*_: Any) -> Any:
        raise StoreUnavailable("for a test")

    async def called(make: Any) -> Any:
        return fails() if isinstance(make(0), m.RevokeClient) else await call(make)

    async def noted(*_: Any) -> bytes:
        return bytes(fails())

    def put_setting(name: str, value: bytes) -> None:
        return fails() if name.startswith(REVOKED) else put(name, value)

    owner, attribute, instead = {
        "log": (engine, "note", noted),
        "statement": (store, "put_setting", put_setting),
        "client": (engine, "call", called),
        "list": (r.hq.trust, "new_crl", fails),
    }[step]
    patch.setattr(owner, attribute, instead)


async def by_admin(r: Running, directory: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await r.hq.enrolments.revoke(NAME, "stolen")


async def by_a_list(r: Running, directory: Path) -> None:
    """The client was enrolled as others are: the row of that is kept."""
    row = Enrolment(bytes(32), NAME, m.CLIENT, False, 0, 1 << 50, DONE)
    await r.hq.engine.in_store(r.hq.store.put_enrolment, row)
    serial = pki.serial(r.people[NAME].chain[0])
    (directory / "a.crl").write_bytes(make_crl(r.issuing, [(serial, clock.now())], 5))
    set_lists(r, directory / "a.crl")
    r.hq.reload()  # which has HQ apply it, too
    with suppress(StoreUnavailable):
        await r.hq.revocations.apply()


def is_whole(r: Running, serial: str) -> bool:
    store = r.hq.store
    listed = read_crl(r.hq.trust.crl(), r.hq.trust.issuing, clock.now()).revoked
    return (
        store.get_setting(REVOKED + serial) is not None
        and not r.hq.enrolments.has_client(NAME)
        and serial in listed
    )


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("revoke", [by_admin, by_a_list])
@pytest.mark.parametrize("start", [True, False])
async def test_it_is_finished_at_the_next_start_or_soon(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    revoke: Callable[[Running, Path], Awaitable[None]],
    step: str,
    start: bool,
) -> None:
    """Without the statement in the log, receivers refuse what HQ accepted of the client before."""
    finish = "cipherbox.server.directory.revocation_enforcer.FINISH_S"
    monkeypatch.setattr(finish, 1e6 if start else 0.01)
    async with running(tmp_path / "hq") as r:
        person = await r.person(NAME)
        await r.person("CA-RC")
        serial = pki.serial(person.chain[0])
        with monkeypatch.context() as patch:
            fail_at(step, r, patch)
            await revoke(r, tmp_path)
            assert not is_whole(r, serial)
        if not start:
            await until(lambda: is_whole(r, serial))
    if start:
        async with running(tmp_path / "hq") as r:
            await until(lambda: is_whole(r, serial))
            assert r.hq.enrolments.has_client("CA-RC")


async def test_a_home_that_replaces_another_is_not_revoked(
    tmp_path: Path,
) -> None:
    """HQ crashed after it had revoked the old home's certificates: the new home asks again."""
    async with running(tmp_path / "hq") as r:
        await r.person(NAME)
        await r.hq.enrolments.token(NAME, m.CLIENT, approve=False, valid_s=3600, replaces=True)
        rows = await r.hq.engine.in_store(r.hq.store.revoke_certificates, NAME, r.hq.clock_ms())
        r.hq.trust.put_revoked(rows)
        await r.hq.revocations.finish()
        assert r.hq.enrolments.has_client(NAME)
        assert r.hq.store.get_setting(REVOKED + rows[0].serial) is not None
