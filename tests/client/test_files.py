"""Files of any size over a real HQ: whole or not at all, under safe names, resumed where they
stopped.
"""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.file_types import guess_type
from cipherbox.client.outbox.transfers import Transfers, entries_of
from cipherbox.client.publishing.files import FileSender, send_directory, send_file, send_unfinished
from cipherbox.client.publishing.parts import (
    Manifest,
    manifest_message,
    part_message,
    read_manifest,
    read_part,
)
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import CipherBoxError, FileChanged, FileError, MalformedEnvelope
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message
from tests.client.attacks import bomb

PART = LIMITS.part_bytes
MIB = 1024 * 1024
INCOMING = "incoming"


def made(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


async def receive(hq: Any, files: int) -> Receiver:
    async with hq.client("CA-RC") as center:
        receiver = Receiver(center)
        with trio.fail_after(60):
            assert await receiver.run(count=files) == files
        return receiver


@pytest.mark.parametrize(
    ("size", "compress"), [(0, False), (1, True), (PART, False), (2 * PART + 5, True)]
)
async def test_a_file_arrives_whole(hq: Any, tmp_path: Path, size: int, compress: bool) -> None:
    file = made(tmp_path / "scan.tif", size)
    file.write_bytes(file.read_bytes()[: size // 2] + b"a" * (size - size // 2))
    async with hq.client("FL-LAB") as lab:
        confirmation = await send_file(
            lab, file, ["scan.tif"], ["CA-RC"], "image/tiff", compress=compress
        )
        await receive(hq, 1)
        assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
    (line,) = hq.lines("CA-RC")
    assert line["message_id"] == str(confirmation.message_ids[0])
    arrived = hq.home("CA-RC") / INCOMING / "FL-LAB" / "scan.tif"
    assert (line["content"]["size"], line["content"]["file"]) == (size, str(arrived))
    assert line["content"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert arrived.read_bytes() == file.read_bytes()
    assert arrived.stat().st_mtime == pytest.approx(file.stat().st_mtime, abs=0.01)
    assert not any((hq.home("CA-RC") / INCOMING / ".partial" / "FL-LAB").iterdir())


async def test_names_lead_nowhere_else_and_never_over_another_file(hq: Any, tmp_path: Path) -> None:
    file = made(tmp_path / "x", 10)
    names = [
        ["../../../evil"],
        ["..", "..", "up"],
        ["a\x1b[31m\nb"],
        ["CON"],
        ["dir", "x.txt"],
        ["dir", "x.txt"],
        [".h"],
    ]
    async with hq.client("FL-LAB") as lab:
        for path in names:
            await send_file(lab, file, path, ["CA-RC"], "")
    await receive(hq, len(names))
    top = hq.home("CA-RC") / INCOMING / "FL-LAB"
    found = sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())
    assert len(found) == len(names)
    assert "dir/x.txt" in found
    assert "dir/x (2).txt" in found
    for path in found:
        assert all(
            part not in ("..", ".") and not part.startswith(".") for part in Path(path).parts
        )
        assert path.isprintable()
    assert not (hq.homes / "evil").exists()
    assert not (tmp_path / "evil").exists()


async def test_an_interrupted_file_goes_on_where_it_stopped(hq: Any, tmp_path: Path) -> None:
    file = made(tmp_path / "big", 6 * PART)
    async with hq.client("FL-LAB") as lab:
        at_hq: list[int] = []
        with trio.CancelScope() as scope:

            def stop_in_the_middle(_: Any, done: int) -> None:
                at_hq.append(done)
                if done >= 2 * PART:
                    scope.cancel()

            await send_file(lab, file, ["big"], ["CA-RC"], "", on_progress=stop_in_the_middle)
        assert at_hq[-1] < file.stat().st_size
    sent: list[int] = []
    async with hq.client("FL-LAB") as lab:
        (transfer,) = Transfers(lab.outbox_sender.outbox).unfinished()
        known = len(Transfers(lab.outbox_sender.outbox).hashes(transfer.number))
        assert known >= 2
        sealed = lab.sealer.seal

        def counted(address: Any, *arguments: Any, **more: Any) -> Any:
            sent.append(1)
            return sealed(address, *arguments, **more)

        lab.sealer.seal = counted
        assert await send_unfinished(lab) == []
        assert len(sent) == 6 - known + 1  # and the manifest
    await receive(hq, 1)
    assert (hq.home("CA-RC") / INCOMING / "FL-LAB" / "big").read_bytes() == file.read_bytes()


async def test_the_receiver_goes_on_too(hq: Any, tmp_path: Path) -> None:
    file = made(tmp_path / "big", 5 * PART)
    async with hq.client("FL-LAB") as lab:
        await send_file(lab, file, ["big"], ["CA-RC"], "")
    partial = hq.home("CA-RC") / INCOMING / ".partial" / "FL-LAB"
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60), trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def stop_soon() -> None:
                    while not (partial.exists() and any(partial.iterdir())):
                        await trio.sleep(0.001)
                    scope.cancel()

                nursery.start_soon(stop_soon)
                await Receiver(center).run()
    await hq.restart()
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60):
            receiver = Receiver(center)
            while not (hq.home("CA-RC") / INCOMING / "FL-LAB" / "big").exists():
                await receiver.run(idle_s=0.2)
    assert (hq.home("CA-RC") / INCOMING / "FL-LAB" / "big").read_bytes() == file.read_bytes()
    assert len(hq.lines("CA-RC")) == 1


@pytest.mark.parametrize("change", ["grow", "touch", "replace", "vanish"])
async def test_a_file_that_changes_stops_and_never_gets_a_name(
    hq: Any, tmp_path: Path, change: str
) -> None:
    file = made(tmp_path / "big", 4 * PART)

    def changing(_: Any, done: int) -> None:
        if done != PART or not file.exists():
            return
        if change == "grow":
            with file.open("ab") as more:
                more.write(b"x")
        elif change == "touch":
            os.utime(file, ns=(1, file.stat().st_mtime_ns + 1))
        elif change == "replace":
            made(tmp_path / "other", 4 * PART).rename(file)
        else:
            file.unlink()

    async with hq.client("FL-LAB") as lab:
        with pytest.raises(FileChanged, match="big"):
            await send_file(lab, file, ["big"], ["CA-RC"], "", on_progress=changing)
        assert Transfers(lab.outbox_sender.outbox).unfinished() == []
    async with hq.client("CA-RC") as center:
        await Receiver(center).drain()
    assert not (hq.home("CA-RC") / INCOMING / "FL-LAB").exists()
    assert hq.lines("CA-RC") == []


async def test_a_copy_is_sent_whatever_becomes_of_the_file(hq: Any, tmp_path: Path) -> None:
    file = made(tmp_path / "big", 2 * PART)
    content = file.read_bytes()
    async with hq.client("FL-LAB") as lab:

        async def begin() -> Any:
            transfers = Transfers(lab.outbox_sender.outbox)
            return transfers.begin(file, ["big"], ["CA-RC"], "", compress=False, copy=True)

        transfer = await begin()
        file.write_bytes(b"something else")
        await FileSender(lab, transfer).run()
    await receive(hq, 1)
    assert (hq.home("CA-RC") / INCOMING / "FL-LAB" / "big").read_bytes() == content


def tree(top: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()
    }


def is_file(path: str) -> bool:
    return Path(path).is_file()


def made_directory(top: Path) -> Path:
    folder = top / "run-42"
    (folder / "plates" / "empty").mkdir(parents=True)
    made(folder / "scan.tif", PART + 5)
    made(folder / "plates" / "a.csv", 17)
    made(folder / "plates" / "b.csv", 0)
    for number in range(40):
        made(folder / "plates" / f"{number}.txt", number * 1000)
    return folder


@pytest.mark.parametrize("copy", [False, True])
async def test_a_directory_is_one_line_one_receipt_and_whole_or_not_there(
    hq: Any, tmp_path: Path, copy: bool
) -> None:
    folder = made_directory(tmp_path)
    async with hq.client("FL-LAB") as lab:
        confirmation = await send_directory(lab, folder, ["CA-RC"], copy=copy)
        await receive(hq, 1)
        assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
        # nothing of it is needed here any more
        transfers = Transfers(lab.outbox_sender.outbox)
        (sent,) = transfers.all(10)
        assert transfers.hashes(sent.number) == {}
    assert not is_file(sent.file)
    (line,) = hq.lines("CA-RC")
    assert line["message_id"] == str(confirmation.message_ids[0])
    arrived = hq.home("CA-RC") / INCOMING / "FL-LAB" / "run-42"
    assert line["content"]["file"] == str(arrived)
    assert len(line["content"]["files"]) == 43
    assert tree(arrived) == tree(folder)
    assert list(arrived.glob("plates/empty")) != []
    assert not any((hq.home("CA-RC") / INCOMING / ".partial" / "FL-LAB").iterdir())


async def test_a_file_of_a_directory_that_changes_stops_the_whole(hq: Any, tmp_path: Path) -> None:
    folder = made_directory(tmp_path)

    def changing(_: Any, done: int) -> None:
        if done >= PART:
            os.utime(folder / "plates" / "a.csv", ns=(1, 1))

    async with hq.client("FL-LAB") as lab:
        with pytest.raises(FileChanged, match=r"a\.csv changed"):
            await send_directory(lab, folder, ["CA-RC"], on_progress=changing)
    async with hq.client("CA-RC") as center:
        await Receiver(center).drain()
    assert hq.lines("CA-RC") == []


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    from cipherbox.client.outbox.outbox import Outbox

    outbox = Outbox(tmp_path)
    for bad in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError):
            Transfers(outbox).begin(bad, ["x"], ["CA-RC"], "", compress=False, copy=False)
    outbox.close()


def test_what_lies_too_deep_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    from cipherbox.client.outbox.outbox import Outbox

    names = ["d"] * LIMITS.path_names
    content = manifest_message(Manifest(b"t" * 16, (*names, "f"), 0, PART, (), 0, "")).content
    assert read_manifest(content).path == (*names, "f")
    with pytest.raises(MalformedEnvelope, match="path"):
        read_manifest(content.replace(b'"path":[', b'"path":["d",'))
    last = tmp_path.joinpath(*names)
    (last / "d").mkdir(parents=True)
    (last / "f").write_bytes(b"1")
    assert [one.path for one in entries_of(tmp_path / "d") if one.size >= 0] == [
        "/".join([*names[1:], "f"])
    ]
    (last / "d" / "f").write_bytes(b"2")
    with pytest.raises(FileError, match="33 directories deep; 32 can be sent: pack them"):
        entries_of(tmp_path / "d")
    outbox = Outbox(tmp_path)
    for copy in (True, False):
        with pytest.raises(FileError, match="directories deep"):
            Transfers(outbox).begin(
                last / "f", [*names, "d", "f"], ["CA-RC"], "", compress=False, copy=copy
            )
    assert Transfers(outbox).unfinished() == []
    assert not list((tmp_path / "outbox").glob("*"))
    outbox.close()


async def test_a_manifest_that_does_not_fit_its_parts_is_refused_with_a_receipt(hq: Any) -> None:
    part = part_message(b"t" * 16, 0, PART, b"one thing", compress=False)
    manifest = Manifest(b"t" * 16, ("x",), 9, PART, (bytes(32),), 0, "")
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish([part], to="CA-RC", box="bulk")
        confirmation = await lab.publish([manifest_message(manifest)], to="CA-RC", box="bulk")
        await lab.publish(
            [Message(b"{}", manifest_message(manifest).content_type)], to="CA-RC", box="bulk"
        )
        with trio.fail_after(60):
            await Receiver(center).drain()
            while not (
                outcomes := lab.outbox_sender.outbox.outcomes(
                    (await lab.sent(confirmation.message_ids[0])).number
                )
            ):
                await trio.sleep(0.01)
        assert outcomes[0][1] != 0
    assert not (hq.home("CA-RC") / INCOMING / "FL-LAB").exists()


def test_parts_and_manifests_that_are_none() -> None:
    good = part_message(b"t" * 16, 3, 100, b"x" * 100, compress=True)
    assert read_part(good).data == b"x" * 100
    for headers in (
        {},
        {"part": "-1"},
        {"part": "x"},
        {"part_bytes": "0"},
        {"transfer": "zz"},
        {"encoding": "rot13"},
    ):
        with pytest.raises(MalformedEnvelope):
            read_part(
                Message(
                    good.content, good.content_type, {**good.headers, **headers} if headers else {}
                )
            )
    bomb = part_message(
        b"t" * 16, 0, LIMITS.part_bytes_most, bytes(LIMITS.part_bytes_most), compress=True
    )
    with pytest.raises(MalformedEnvelope):
        read_part(Message(bomb.content, bomb.content_type, {**bomb.headers, "part_bytes": "1000"}))
    plain = part_message(b"t" * 16, 3, 100, b"x" * 100, compress=False)
    assert read_part(plain).data == b"x" * 100
    for size in (0, 101):  # it would write over the next part
        with pytest.raises(MalformedEnvelope):
            read_part(Message(b"x" * size, plain.content_type, plain.headers))
    manifest = Manifest(b"t" * 16, ("a", "b"), 150, 100, (bytes(32), bytes(32)), 5, "text/plain")
    content = manifest_message(manifest).content
    assert read_manifest(content) == manifest
    for at in range(len(content)):
        try:
            read_manifest(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        except CipherBoxError as error:
            assert isinstance(error, MalformedEnvelope)  # noqa: PT017


def test_a_part_that_expands_without_end_is_refused_in_little_memory() -> None:
    good = part_message(b"t" * 16, 0, MIB, b"x", compress=True)
    part = Message(bomb(64), good.content_type, {**good.headers, "encoding": "zstd"})
    tracemalloc.start()
    try:
        with pytest.raises(MalformedEnvelope):
            read_part(part)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB  # its part_bytes are 1 MiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("report.hl7", "application/hl7-v2"),
        ("x.csv", "text/csv"),
        ("x.unheard-of", "application/octet-stream"),
        ("sample.vcf", "text/x-vcf"),
        ("sample.vcf.gz", "application/gzip"),
        ("IM0001.DCM", "application/dicom"),
        ("run.mzML", "application/x-mzml+xml"),
        ("t1.nii", "application/x-nifti"),
        ("t1.nii.gz", "application/gzip"),
        ("reads.fastq", "text/x-fastq"),
        ("a.tar.gz", "application/gzip"),
        ("scan.tif", "image/tiff"),
    ],
)
def test_types_by_name(name: str, kind: str) -> None:
    assert guess_type(Path(name)) == kind
