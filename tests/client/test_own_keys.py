"""A client's next key, over a real HQ: published, opened with, and never lost, whatever is cut
off.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.home import load_home
from cipherbox.client.keys import own as ownkeys
from cipherbox.client.outbox.transfers import Transfers
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.layout import split
from cipherbox.errors import BundleError, Forbidden, InvalidRequest, NetworkError, StoreLocked
from cipherbox.limits import LIMITS
from cipherbox.portable import lock_file
from cipherbox.sealing.identity import Identity
from cipherbox.wire import frames
from tests.golden.make_rsa import rsa_key

KINDS = ["hpke-mlkem768-x25519", "hpke-x25519", "rsa-oaep"]


def identity_of(hq: Any, client_id: str = "CA-RC") -> Identity:
    identity = load_home(hq.home(client_id)).identity
    assert identity is not None
    return identity


async def offered(hq: Any, client_id: str = "CA-RC") -> Any:
    async with hq.client("FL-LAB") as lab:
        return await lab.directory.newest_at_hq(client_id)


async def sent(lab: Any, text: str, **options: Any) -> Any:
    """Publishes; the prefix that went out."""
    confirmation = await lab.publish(text, to="CA-RC", **options)
    row = lab.outbox_sender.outbox.find(confirmation.envelope_id)
    return split(lab.outbox_sender.outbox.bytes_of(row)).prefix


async def received(hq: Any, count: int) -> list[str]:
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60):
            await Receiver(center).run(count=count)
    return [line["content"] for line in hq.lines("CA-RC")]


async def test_a_new_key_is_in_the_next_bundle_and_opens(hq: Any) -> None:
    first = identity_of(hq)
    async with hq.client("FL-LAB") as lab:
        assert (await sent(lab, "before")).recipients[0].stanza_type == 1
        async with hq.client("CA-RC") as center:
            added = await center.add_key(rsa_key())
            assert center.home.identity.bundle == added.bundle
        assert (added.bundle.sequence, added.already_published) == (2, False)
        assert added.bundle.encrypt_keys[:2] == first.bundle.encrypt_keys  # type: ignore[union-attr]
        lab.directory.refresh("CA-RC")
        for stanza, kind in zip([*KINDS, 3, None], [1, 2, 3, 3, 1], strict=True):
            assert (await sent(lab, str(stanza), stanza=stanza)).recipients[0].stanza_type == kind
        with pytest.raises(InvalidRequest, match="rsa-oaep"):
            await lab.publish("x", to="CA-RC", stanza="letter")
    assert (await offered(hq)).hash == added.bundle.hash
    kept = identity_of(hq)
    assert kept.bundle == added.bundle
    assert kept.current[2] == rsa_key()
    assert await received(hq, 6) == ["before", *KINDS, "3", "None"]


async def test_a_replaced_key_opens_what_was_sealed_to_it(hq: Any) -> None:
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
        await center.add_key(rsa_key())
        old = await sent(lab, "to the old key", stanza="rsa-oaep")
        await center.add_key(rsa_key(copy=1))
        lab.directory.refresh("CA-RC")
        new = await sent(lab, "to the new key", stanza="rsa-oaep")
    assert old.recipients[0].key_id == rsa_key().key_id
    assert new.recipients[0].key_id == rsa_key(copy=1).key_id
    assert identity_of(hq).retired == (rsa_key(),)
    assert [k.algorithm for k in (await offered(hq)).encrypt_keys] == [1, 2, 3]
    assert await received(hq, 2) == ["to the old key", "to the new key"]


async def test_the_same_key_again_changes_nothing(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        first = await center.add_key(rsa_key())
        assert await center.add_key(rsa_key()) == (first.bundle, True)
    assert (await offered(hq)).sequence == 2


@pytest.mark.parametrize(
    "reached", [False, True], ids=["HQ never got it", "only the answer was lost"]
)
async def test_a_cut_line_loses_no_key_and_asking_again_goes_on(
    hq: Any, monkeypatch: Any, reached: bool
) -> None:
    register, kept = ownkeys._register, []

    async def cut(client: Any, bundle: Any) -> None:
        if bundle.sequence == 2:
            kept.append(identity_of(hq).decrypt_key(rsa_key().key_id))
            if reached:
                await register(client, bundle)
            raise NetworkError
        await register(client, bundle)

    monkeypatch.setattr(ownkeys, "_register", cut)
    async with hq.client("CA-RC") as center:
        with pytest.raises(NetworkError):
            await center.add_key(rsa_key())
        assert kept == [rsa_key()]  # on the disk before HQ had the public one
        assert center.home.identity.bundle.sequence == 1
    if reached:
        async with hq.client("FL-LAB") as lab:
            await sent(lab, "sealed meanwhile", stanza="rsa-oaep")
        assert await received(hq, 1) == ["sealed meanwhile"]
    monkeypatch.undo()
    async with hq.client("CA-RC") as center:
        assert await center.add_key(rsa_key()) == (await offered(hq), reached)
        assert (await center.add_key(rsa_key(copy=1))).bundle.sequence == 3
    assert identity_of(hq).bundle == await offered(hq)


async def test_another_copy_of_the_home_is_not_overwritten(hq: Any, tmp_path: Path) -> None:
    shutil.copytree(hq.home("CA-RC"), tmp_path / "homes" / "copy")
    async with hq.client("copy") as copy:
        await copy.add_key(rsa_key())
    async with hq.client("CA-RC") as center:
        with pytest.raises(
            BundleError, match=r"another copy of this home .* copy its keys\.cbk here"
        ):
            await center.add_key(rsa_key(copy=1))
    assert (await offered(hq)).encrypt_keys[-1].key_id == rsa_key().key_id
    shutil.copy(hq.home("copy") / "keys.cbk", hq.home("CA-RC") / "keys.cbk")
    async with hq.client("CA-RC") as center:
        assert (await center.add_key(rsa_key(copy=1))).bundle.sequence == 3


async def test_hq_that_lost_the_newest_bundle_gets_it_again(hq: Any, monkeypatch: Any) -> None:
    """HQ restored from a backup: what this client published last is published again before the
    next.
    """
    seen: list[int] = []
    register = ownkeys._register

    async def counted(client: Any, bundle: Any) -> None:
        seen.append(bundle.sequence)
        await register(client, bundle)

    monkeypatch.setattr(ownkeys, "_register", counted)
    async with hq.client("CA-RC") as center:
        await center.add_key(rsa_key())
    assert seen == [1, 2]


async def test_who_may_add_keys_and_one_at_a_time(hq: Any) -> None:
    async with hq.admin() as admin:
        with pytest.raises(Forbidden, match="admin's machine"):
            await admin.add_key(rsa_key())
    async with hq.client("CA-RC") as center:
        with lock_file(hq.home("CA-RC") / ownkeys.LOCK, "x"):
            with pytest.raises(StoreLocked, match="key file"):
                await center.add_key(rsa_key())
    assert (await offered(hq)).sequence == 1


async def test_a_receiver_that_runs_opens_with_a_key_another_process_made(hq: Any) -> None:
    async with (
        hq.client("CA-RC") as running,
        running.consume() as deliveries,
        hq.client("FL-LAB") as lab,
    ):
        async with hq.client("CA-RC") as other:
            await other.add_key(rsa_key())
        await sent(lab, "to the new key", stanza="rsa-oaep")
        with trio.fail_after(60):
            delivery = await deliveries.__anext__()
        assert [m.content for m in delivery.messages] == [b"to the new key"]
        assert delivery.attempt == 1
        assert running.home.identity.bundle.sequence == 2
        await running.ack(delivery)


async def test_a_key_file_that_cannot_be_read_stops_no_receiver(hq: Any) -> None:
    """The envelope is requeued, and opens once the file is whole."""
    path = hq.home("CA-RC") / "keys.cbk"
    said: list[Any] = []
    async with hq.client("CA-RC", on_event=said.append) as running, running.consume() as deliveries:
        async with hq.client("CA-RC") as other:
            await other.add_key(rsa_key())
        whole = path.read_bytes()
        path.write_bytes(b"broken")
        async with hq.client("FL-LAB") as lab:
            await sent(lab, "kept", stanza="rsa-oaep")

        async def mend() -> None:
            while not any("is requeued" in line for line in said):
                await trio.sleep(0.01)
            path.write_bytes(whole)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mend)
                delivery = await deliveries.__anext__()
        assert delivery.attempt > 1
        assert [m.content for m in delivery.messages] == [b"kept"]
        await running.ack(delivery)


async def test_a_file_in_parts_is_sealed_as_was_asked_also_when_it_goes_on_later(
    hq: Any, tmp_path: Path
) -> None:
    file = tmp_path / "scan.tif"
    file.write_bytes(b"x" * (LIMITS.part_bytes + 1))
    async with hq.client("CA-RC") as center:
        await center.add_key(rsa_key())
        async with hq.client("FL-LAB") as lab:
            await send_file(lab, file, ["scan.tif"], ["CA-RC"], "", stanza="rsa-oaep")
            (row,) = Transfers(lab.outbox_sender.outbox).all(10)
            assert row.stanza == 3
            with pytest.raises(InvalidRequest):
                await send_file(lab, file, ["scan.tif"], ["CA-RC"], "", stanza="rot13")
        found = await center.fetch_unopened("box.CA-RC.bulk", 10)
        assert [d.parsed.layout.prefix.recipients[0].stanza_type for d in found] == [3, 3, 3]


async def test_the_next_generation_is_sealed_as_was_asked(hq: Any) -> None:
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
        await center.add_key(rsa_key())
        chosen = [await sent(lab, "chosen", stanza=stanza) for stanza in ("rsa-oaep", None)]
        for prefix, kind in zip(chosen, (3, 1), strict=True):
            assert await lab.outbox_sender.seal_again(prefix.envelope_id)
            with trio.fail_after(60):
                while lab.outbox_sender.outbox.find(prefix.envelope_id).generation == 0:
                    await trio.sleep(0.01)
            raw = lab.outbox_sender.outbox.bytes_of(
                lab.outbox_sender.outbox.find(prefix.envelope_id)
            )
            assert split(raw).prefix.recipients[0].stanza_type == kind
    assert await received(hq, 2) == ["chosen", "chosen"]


async def test_where_the_chosen_key_is_gone_the_next_generation_takes_the_preferred_one(
    hq: Any,
) -> None:
    async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
        await center.add_key(rsa_key())
        prefix = await sent(lab, "chosen", stanza="rsa-oaep")
        identity = center.home.identity
        without = identity.with_current([k.key_id for k in identity.current[:2]])
        home = center.home
        bundle = without.make_bundle(
            home.key, home.chain, identity.bundle.created_at + 1, identity.bundle
        )
        await center.connection.request(frames.Register, bundle=bundle.raw)
        lab.directory.refresh("CA-RC")
        assert await lab.outbox_sender.seal_again(prefix.envelope_id)
        with trio.fail_after(60):
            while lab.outbox_sender.outbox.find(prefix.envelope_id).generation == 0:
                await trio.sleep(0.01)
        raw = lab.outbox_sender.outbox.bytes_of(lab.outbox_sender.outbox.find(prefix.envelope_id))
        assert split(raw).prefix.recipients[0].stanza_type == 1
