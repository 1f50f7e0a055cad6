"""Coming back after a revocation, and the home that another one replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cipherbox.client import comeback, enrol
from cipherbox.client.enrol import join
from cipherbox.client.home import NEXT_KEY, REPLACED, load_home, replaced
from cipherbox.client.inbox.inspect import looking
from cipherbox.client.keys.pins import PERSON, Pins
from cipherbox.client.outbox.rows import CONFIRMED, WAITING
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import (
    BundleDiscontinuous,
    Conflict,
    CredentialsError,
    EnrolmentRefused,
    Replaced,
    Revoked,
)
from cipherbox.pki.key_replacement import KeyReplacement
from cipherbox.wire.token import decode_token
from tests.client.real_hq import real_hq
from tests.client.test_keylife import Killed, opened, suppress_killed
from tests.client.waiting import until


async def token_for(hq: Any, name: str, **options: Any) -> str:
    async with hq.admin() as admin:
        token: str = await admin.enrol(name, **options)
    return token


async def revoked(hq: Any, name: str) -> None:
    async with hq.admin() as admin:
        await admin.revoke(name, "stolen")


async def test_a_revoked_home_comes_back_with_all_it_holds_and_new_keys(hq: Any) -> None:
    home = hq.home("CA-RC")
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("sealed to the old keys", to="CA-RC")
        await center.publish("sent before", to="FL-LAB")
        before = center.home.identity.bundle
        old = [k.key_id for k in center.home.identity.current]
    local_key, pins = (
        (home / "local.key").read_bytes(),
        (home / "certs" / "FL-LAB.bundle").read_bytes(),
    )
    await revoked(hq, "CA-RC")
    with pytest.raises(Revoked):
        async with hq.client("CA-RC"):
            pass
    report = await join(home, await token_for(hq, "CA-RC"))
    assert (report.client_id, report.role) == ("CA-RC", "client")
    assert (home / "local.key").read_bytes() == local_key
    assert (home / "certs" / "FL-LAB.bundle").read_bytes() == pins
    assert not (home / NEXT_KEY).exists()
    identity = load_home(home).identity
    assert identity is not None
    assert identity.bundle is not None
    assert (identity.bundle.sequence, identity.bundle.breaks_continuity) == (2, True)
    assert identity.bundle.previous_hash == before.hash
    assert not set(old) & {k.key_id for k in identity.current}
    assert set(old) <= {k.key_id for k in identity.retired}
    assert identity.sign_keys != before.sign_keys
    async with hq.client("FL-LAB") as lab:
        lab.directory.refresh("CA-RC")
        with pytest.raises(BundleDiscontinuous, match="begins anew"):
            await lab.publish("secret", to="CA-RC")
        Pins(lab.home.path).accept(
            await lab.directory.newest_at_hq("CA-RC"), PERSON
        )  # they compared
        lab.directory.pins._cache.clear()
        await lab.publish("sealed to the new keys", to="CA-RC")
    assert await opened(hq, "CA-RC") == [b"sealed to the old keys", b"sealed to the new keys"]
    async with hq.client("CA-RC") as center:
        rows = await center.outbox_sender.store(
            center.outbox_sender.outbox.unopened_by, "FL-LAB", 10
        )
        assert len(rows) == 1  # its outbox still has what was sent before
        await center.publish("sent after", to="FL-LAB")


async def test_what_is_sent_while_revoked_is_kept_or_it_is_said_that_nothing_was(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        await center.bundles(["FL-LAB"])
        await center.revocations.ensure()
    await revoked(hq, "CA-RC")
    async with hq.client("CA-RC", keep_trying=True) as center:
        with pytest.raises(
            Revoked,
            match=r"CA-RC was revoked.*Message [0-9a-f-]+ is kept in the outbox and is sent",
        ):
            await center.publish("first", to="FL-LAB")
        with pytest.raises(Revoked, match="Nothing was sent, and nothing was kept"):
            await center.publish("to a stranger", to="SF-RC")
        kept = await center.publish("second", to="FL-LAB", wait=False)
        assert kept.accepted_at == 0
        assert [row.state for row in center.outbox().outbox.newest(5)] == [WAITING, WAITING]
    await join(hq.home("CA-RC"), await token_for(hq, "CA-RC"))
    async with hq.client("CA-RC") as center:
        await until(
            lambda: (
                [row.state for row in center.outbox().outbox.newest(5)] == [CONFIRMED, CONFIRMED]
            )
        )
        # signed with the new keys
        assert [row.generation for row in center.outbox().outbox.newest(5)] == [1, 1]
    async with hq.client("FL-LAB") as lab:
        Pins(lab.home.path).accept(
            await lab.directory.newest_at_hq("CA-RC"), PERSON
        )  # they compared
    assert await opened(hq, "FL-LAB") == [b"first", b"second"]


async def received(hq: Any, name: str) -> list[str]:
    async with hq.client(name) as client:
        await Receiver(client).drain()
    return [line["content"] for line in hq.lines(name)]


async def test_what_waits_for_a_comparison_of_keys_ends_well(hq: Any) -> None:
    """What was sent with new keys is no refusal once they were compared, and what was taken
    before is signed for.
    """
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
        await center.publish("pins the lab's keys", to="FL-LAB")
        await lab.publish("before", to="CA-RC")
    sent = int(time.time())
    await until(lambda: int(time.time()) > sent)  # a revocation counts from the begin of its second
    await revoked(hq, "FL-LAB")
    await join(hq.home("FL-LAB"), await token_for(hq, "FL-LAB"))
    async with hq.client("FL-LAB") as lab:
        await lab.publish("after", to="CA-RC")
    assert await received(hq, "CA-RC") == ["before"]
    with looking(load_home(hq.home("CA-RC"))) as look:
        assert [entry.sender_id for entry in look.refused(9)] == ["FL-LAB"]
        assert look.counts()["refused"] == 1
    async with hq.client("CA-RC") as center:
        # they compared
        Pins(center.home.path).accept(await center.directory.newest_at_hq("FL-LAB"), PERSON)
    assert await received(hq, "CA-RC") == ["before", "after"]
    with looking(load_home(hq.home("CA-RC"))) as look:
        assert (look.refused(9), look.counts()["refused"]) == ([], 0)
    await received(hq, "FL-LAB")
    async with hq.client("FL-LAB") as lab:
        assert (
            await lab.outbox_sender.store(lab.outbox_sender.outbox.unopened_by, "CA-RC", 10) == []
        )


def dying(patch: pytest.MonkeyPatch, die_before: int) -> list[str]:
    """The steps of coming back, by name; the process dies before step ``die_before``."""
    done: list[str] = []

    def step(name: str, work: Any) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if len(done) >= die_before:
                raise Killed
            done.append(name)
            return work(*arguments, **options)

        return counted

    patch.setattr(KeyReplacement, "begin", step("next key", KeyReplacement.begin))
    patch.setattr(enrol, "write_private", step("mark", enrol.write_private))
    patch.setattr(comeback.keyfile, "save", step("keys", comeback.keyfile.save))
    patch.setattr(comeback, "_put_certificate", step("certificate", comeback._put_certificate))
    patch.setattr(comeback, "_publish", step("publish", comeback._publish))
    patch.setattr(comeback, "retire_sessions", step("sessions", comeback.retire_sessions))
    return done


STEPS = ["next key", "mark", "keys", "certificate", "publish", "keys", "sessions"]


@pytest.mark.parametrize("die_before", range(len(STEPS)))
async def test_a_crash_between_any_two_steps_is_gone_on_from_with_the_same_token(
    hq: Any, monkeypatch: pytest.MonkeyPatch, die_before: int
) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("sealed to the old keys", to="CA-RC")
    await revoked(hq, "CA-RC")
    token = await token_for(hq, "CA-RC")
    with monkeypatch.context() as patch:
        done = dying(patch, die_before)
        with suppress_killed():
            await join(hq.home("CA-RC"), token)
    assert done == STEPS[:die_before]
    await join(hq.home("CA-RC"), token)
    async with hq.client("CA-RC") as center:
        assert center.home.identity.upcoming is None
        (own,) = await center.directory.ask([("CA-RC", 0)])
        assert own.bundles[-1] == center.home.identity.bundle.raw
        assert center.home.identity.bundle.breaks_continuity
        assert len(own.bundles) == 2
    assert await opened(hq, "CA-RC") == [b"sealed to the old keys"]


async def test_a_home_comes_back_as_the_same_client_of_the_same_hq_alone(
    hq: Any, tmp_path: Path
) -> None:
    await revoked(hq, "CA-RC")
    with pytest.raises(
        CredentialsError, match="belongs to CA-RC; choose another directory for NY-RC"
    ):
        await join(hq.home("CA-RC"), await token_for(hq, "NY-RC"))
    async with real_hq(tmp_path / "other") as other:
        token = await token_for(other, "CA-RC")
        with pytest.raises(CredentialsError, match="belongs to another HQ"):
            await join(hq.home("CA-RC"), token)


async def test_keys_under_a_password_come_back_under_it(hq: Any) -> None:
    from cipherbox.client.keys.local_key import is_sealed, put_local_key
    from cipherbox.errors import PasswordNeeded

    home = load_home(hq.home("CA-RC"))
    assert home.local_key is not None
    put_local_key(home.path, home.local_key, "four staples of a correct horse")
    await revoked(hq, "CA-RC")
    token = await token_for(hq, "CA-RC")
    with pytest.raises(PasswordNeeded):
        await join(home.path, token)
    await join(home.path, token, password="four staples of a correct horse")
    assert is_sealed(home.path)


@pytest.mark.parametrize("fate", ["lost", "damaged"])
async def test_a_home_whose_keys_are_gone_comes_back_with_new_ones(hq: Any, fate: str) -> None:
    path = hq.home("CA-RC") / "keys.cbk"
    path.write_bytes(b"CBXK not a key file") if fate == "damaged" else path.unlink()
    (hq.home("CA-RC") / "ca.crt").unlink()
    await join(hq.home("CA-RC"), await token_for(hq, "CA-RC", replace=True))
    assert (hq.home("CA-RC") / "keys.cbk.damaged").exists() == (fate == "damaged")
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
    assert await opened(hq, "CA-RC") == [b"x"]


async def test_sessions_of_before_are_not_spoken_in_again(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        await center.prekeys.offer()
    async with hq.client("FL-LAB") as lab:
        await lab.prekeys.offer()
        await lab.publish("in a session", to="CA-RC", stanza="ratchet")
    assert await opened(hq, "CA-RC") == [b"in a session"]
    async with hq.client("CA-RC") as center:
        await center.publish("back", to="FL-LAB", stanza="ratchet")
        assert center.sessions.can_send("FL-LAB")
    await revoked(hq, "CA-RC")
    await join(hq.home("CA-RC"), await token_for(hq, "CA-RC"))
    async with hq.client("CA-RC") as center:
        assert not center.sessions.can_send("FL-LAB")


# -- another home in its place ---------------------------------------------------------------------


async def test_an_id_in_use_is_refused_and_a_replaced_home_is_told(hq: Any, tmp_path: Path) -> None:
    said: list[str] = []
    async with hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab:
        await lab.publish("x", to="CA-RC")
        with pytest.raises(Conflict, match="enroll CA-RC --replace"):
            await token_for(hq, "CA-RC")
        token = await token_for(hq, "CA-RC", replace=True)
        async with hq.client("CA-RC", keep_trying=True) as center:  # an agent that runs meanwhile
            await center.connection.ready()
            await join(tmp_path / "new", token)
            await until(lambda: center.connection.failure is not None)
        assert isinstance(center.connection.failure, Replaced)
        await until(
            lambda: any("CA-RC was enrolled again and has new keys" in line for line in said)
        )
        await until(
            lambda: any("WARNING: " in line and "Pinned here: bundle 1" in line for line in said)
        )
    assert "another home was enrolled as CA-RC" in replaced(hq.home("CA-RC"))
    with pytest.raises(Replaced, match="another home was enrolled as CA-RC"):
        async with hq.client("CA-RC"):
            pass
    await join(hq.home("CA-RC"), await token_for(hq, "CA-RC", replace=True))  # and back again
    assert not (hq.home("CA-RC") / REPLACED).exists()
    async with hq.client("CA-RC") as center:
        assert center.home.identity.bundle.sequence == 3


async def test_a_token_of_before_brings_nobody_back(hq: Any, tmp_path: Path) -> None:
    token = await token_for(hq, "MA-LAB")
    await join(tmp_path / "first", await token_for(hq, "MA-LAB"))
    with pytest.raises(EnrolmentRefused, match="enroll MA-LAB --replace"):
        await join(tmp_path / "second", token)
    late = await token_for(hq, "MA-LAB", replace=True)
    await revoked(hq, "MA-LAB")
    with pytest.raises(EnrolmentRefused, match="cancelled when MA-LAB was revoked"):
        await join(tmp_path / "third", late)


async def test_a_rotation_that_races_with_a_replacement_loses(hq: Any, tmp_path: Path) -> None:
    """Whichever HQ gets to first, the home that was let in last publishes last, and the other is
    told.
    """
    token = await token_for(hq, "CA-RC", replace=True)
    async with hq.client("CA-RC", keep_trying=True, renew=False) as center:
        await center.connection.ready()
        await center.key_lifecycle.rotate()  # between the token and its use
        await join(tmp_path / "new", token)
        with pytest.raises(CredentialsError):
            await center.key_lifecycle.rotate()
    own = load_home(tmp_path / "new").identity
    assert own is not None
    assert own.bundle is not None
    assert (own.bundle.sequence, own.bundle.breaks_continuity) == (3, True)
    async with hq.client("FL-LAB") as lab:
        (bundle,) = await lab.bundles(["CA-RC"])
        assert bundle.hash == own.bundle.hash


async def test_an_admins_home_is_replaced_and_told(hq: Any, tmp_path: Path) -> None:
    token = await token_for(hq, "admin", role="admin", replace=True)
    assert decode_token(token).client_id == "admin"
    await join(tmp_path / "new", token)
    with pytest.raises(Replaced):
        async with hq.admin():
            pass
