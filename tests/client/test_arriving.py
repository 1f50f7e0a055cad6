"""Files on their way in: under one directory, under safe names, and whole only as they lie on
the disk.
"""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from cipherbox import clock
from cipherbox.client.inbox import incoming_files as arriving
from cipherbox.client.inbox import places, unpacking
from cipherbox.client.inbox.content_types import message_count
from cipherbox.client.inbox.inbox import Inbox, InboxStorage
from cipherbox.client.inbox.incoming_files import Arrived
from cipherbox.client.inbox.lines import Received
from cipherbox.client.inbox.places import free_place, safe_place
from cipherbox.client.publishing.parts import (
    Entry,
    Manifest,
    manifest_message,
    part_message,
    read_manifest,
)
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.errors import MalformedEnvelope, StoreError
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message, pack, unpack
from cipherbox.sealing.encrypted_file import ClearFile
from cipherbox.sealing.local_secret_box import SecretBox
from tests.client.parties import now_ms

IDS = EnvelopeIds(now_ms)
SENDER = "FL-LAB"
BOX = SecretBox(bytes(32))


def sealed(message: Message, sender: str = SENDER, queue: str = "box.CA-RC.bulk") -> Received:
    return Received(sender, IDS.next(), 0, queue, 1, 1_759_906_980_123, [message])


def in_parts(
    content: bytes,
    path: Sequence[str],
    *,
    part_bytes: int = 64 * 1024,
    transfer: bytes | None = None,
    modified: int = 0,
) -> list[Received]:
    """A file as its envelopes, the manifest last."""
    transfer = transfer or os.urandom(16)
    pieces = [content[at : at + part_bytes] for at in range(0, len(content), part_bytes)]
    parts = [
        part_message(transfer, n, part_bytes, piece, compress=False)
        for n, piece in enumerate(pieces)
    ]
    hashes = tuple(hashlib.sha256(piece).digest() for piece in pieces)
    manifest = Manifest(
        transfer, tuple(path), len(content), part_bytes, hashes, modified, "text/csv"
    )
    return [sealed(message) for message in (*parts, manifest_message(manifest))]


def completed(inbox: Inbox) -> list[Arrived]:
    """Files that can get their names do."""
    found: list[Arrived] = []
    while checks := inbox.ready():
        for check in checks:
            while not check.done:
                check.step()
        found += inbox.complete(checks)
    return found


def lines(home: Path) -> list[dict[str, Any]]:
    return [
        orjson.loads(x)
        for x in (home / "data" / "received_messages.jsonl").read_bytes().splitlines()
    ]


def receipts(inbox: Inbox) -> dict[int, tuple[int | None, int]]:
    """Envelope -> (receipt, outcome): None is owed, -1 held."""
    rows = inbox._db.execute("SELECT number, receipt, outcome FROM envelopes ORDER BY number")
    return {number: (receipt, outcome) for number, receipt, outcome in rows}


def last(found: dict[int, tuple[int | None, int]]) -> tuple[int | None, int]:
    return found[max(found)]


def files_below(top: Path) -> list[str]:
    return sorted(
        str(p.relative_to(top)) for p in top.rglob("*") if p.is_file() and ".partial" not in p.parts
    )


def test_a_file_and_a_directory_of_one_name_both_arrive_and_the_inbox_opens_again(
    tmp_path: Path,
) -> None:
    inbox = Inbox(tmp_path)
    for path in (["results"], ["results", "run.csv"], ["results"], ["other", "x"], ["other"]):
        inbox.record(in_parts(b"/".join(name.encode() for name in path), path))
        assert len(completed(inbox)) == 1
    inbox.close()
    Inbox(tmp_path).close()
    assert files_below(tmp_path / "incoming") == [
        "FL-LAB/other (2)",
        "FL-LAB/other/x",
        "FL-LAB/results",
        "FL-LAB/results (2)/run.csv",
        "FL-LAB/results (3)",
    ]
    for line in lines(tmp_path):
        assert Path(line["content"]["file"]).read_text() == line["content"]["filename"]


def test_a_path_longer_than_the_system_takes_arrives_and_keeps_its_suffix(tmp_path: Path) -> None:
    top = tmp_path / ("deep" * 50)  # the directory of incoming files is long itself
    inbox = Inbox(tmp_path, storage=InboxStorage(top))
    long = [f"{n:03}" + "d" * 117 for n in range(LIMITS.path_names)]
    inbox.record(in_parts(b"x", [*long, "f" * 300 + ".nii.gz"]))
    inbox.record(in_parts(b"y", ["again.csv"]))
    assert len(completed(inbox)) == 2
    inbox.close()
    Inbox(tmp_path, storage=InboxStorage(top)).close()
    found = files_below(top)
    assert len(found) == 2
    assert found[0].endswith(".nii.gz")
    assert lines(tmp_path)[0]["content"]["filename"].endswith("f" * 300 + ".nii.gz")


def test_a_name_that_this_file_system_refuses_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path)
    monkeypatch.setattr(
        arriving, "safe_place", lambda sender, names: Path(sender, "n" * 300 + ".csv")
    )
    inbox.record(in_parts(b"x", ["n.csv"]))
    (one,) = completed(inbox)
    inbox.close()
    assert Path(one.file).suffix == ".csv"
    assert Path(one.file).read_bytes() == b"x"


def test_trouble_with_one_file_is_told_and_tried_again_and_others_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    inbox = Inbox(tmp_path, say=said.append)
    moved = places.move

    def failing(source: Path, target: Path) -> bool:
        if target.name == "bad":
            raise OSError(5, "Input/output error", str(target))
        return moved(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(arriving, "move", failing)
        inbox.record([*in_parts(b"1", ["bad"]), *in_parts(b"2", ["good"])])
        assert [one.filename for one in completed(inbox)] == ["good"]
        assert inbox.waits
        assert "Input/output error" in said[0]
    inbox.close()
    again = Inbox(tmp_path)
    assert [one.filename for one in completed(again)] == ["bad"]
    again.close()


@pytest.mark.parametrize("plain", [True, False])
def test_a_part_of_another_size_that_writes_over_another_is_noticed(
    tmp_path: Path, plain: bool
) -> None:
    content = os.urandom(3 * 64 * 1024)
    transfer = os.urandom(16)
    *parts, manifest = in_parts(content, ["whole.bin"], transfer=transfer)
    # Recorded as part 1, but written where the end of part 0 lies.
    over = sealed(part_message(transfer, 1, 40_000, b"!" * 40_000, compress=False))
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "incoming", BOX, plain))
    inbox.record([parts[0], over, parts[2], manifest])
    assert completed(inbox) == []
    assert last(receipts(inbox)) == (None, 255)  # refused, and its sender is told
    inbox.record([parts[1]])
    assert completed(inbox) == []
    # Every part came as it should, and one in between that was written over them.
    *parts, manifest = in_parts(content, ["again.bin"], transfer=b"t" * 16)
    inbox.record(
        [*parts, sealed(part_message(b"t" * 16, 5, 1000, b"?" * 1000, compress=False)), manifest]
    )
    assert completed(inbox) == []
    assert last(receipts(inbox)) == (None, 255)
    inbox.close()
    assert not (tmp_path / "data/received_messages.jsonl").exists() or lines(tmp_path) == []


def test_a_manifest_that_says_something_else_does_not_change_the_file(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    *parts, manifest = in_parts(b"one", ["a"], transfer=b"t" * 16)
    *_, other = in_parts(b"two", ["b"], transfer=b"t" * 16)
    inbox.record([manifest, other, *parts])
    assert [one.filename for one in completed(inbox)] == ["a"]
    *_, late = in_parts(b"six", ["c"], transfer=b"t" * 16)
    *_, same = in_parts(b"one", ["a"], transfer=b"t" * 16)
    inbox.record([late, same])
    assert completed(inbox) == []
    assert [outcome for _, outcome in receipts(inbox).values()] == [0, 255, 0, 255, 0]
    assert {receipt for receipt, _ in receipts(inbox).values()} == {None}
    inbox.close()


def test_a_part_further_than_files_reach_is_left_out(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    far = part_message(b"t" * 16, LIMITS.parts - 1, LIMITS.part_bytes_most, b"x", compress=False)
    inbox.record([sealed(far), *in_parts(b"honest", ["h"])])
    assert [one.filename for one in completed(inbox)] == ["h"]
    inbox.close()


@pytest.mark.parametrize("name", ["free_place", "read_manifest"])
@pytest.mark.parametrize("error", [OverflowError("too large"), RecursionError("too deep")])
def test_an_error_that_one_file_causes_refuses_that_file(
    tmp_path: Path, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(arriving, name)

    def failing(*arguments: Any) -> Any:
        if "bad.csv" in repr(arguments):
            raise error
        return real(*arguments)

    inbox = Inbox(tmp_path)
    inbox.record([*in_parts(b"x", ["bad.csv"]), *in_parts(b"honest", ["h"])])
    with monkeypatch.context() as patch:
        patch.setattr(arriving, name, failing)
        assert [one.filename for one in completed(inbox)] == ["h"]
    assert completed(inbox) == []
    assert [outcome for _, outcome in receipts(inbox).values()] == [0, 255, 0, 0]
    inbox.close()


def test_a_part_that_this_file_system_cannot_hold_is_left_out(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    inbox = Inbox(tmp_path)
    far = part_message(b"t" * 16, 1, LIMITS.part_bytes_most, b"x", compress=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS.part_bytes_most // 2, hard))
    try:
        inbox.record([sealed(far), *in_parts(b"honest", ["h"])])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [one.filename for one in completed(inbox)] == ["h"]
    inbox.close()


def test_a_file_whose_parts_are_gone_is_refused_with_that_reason_and_others_arrive(
    tmp_path: Path,
) -> None:
    inbox = Inbox(tmp_path)
    inbox.record(in_parts(b"it is removed meanwhile", ["gone"], transfer=b"t" * 16))
    (hidden,) = (path for path in tmp_path.rglob(".partial/**/*") if path.is_file())
    hidden.unlink()
    inbox.record(in_parts(b"honest", ["h"]))
    inbox.close()
    inbox = Inbox(tmp_path)
    assert [one.filename for one in completed(inbox)] == ["h"]
    assert list(receipts(inbox).values())[:2] == [(None, 0), (None, 255)]  # part, manifest
    reasons = [reason for (reason,) in inbox._db.execute("SELECT reason FROM transfers")]
    assert any("missing on this machine" in reason for reason in reasons)
    inbox.close()


def test_compressed_parts_are_expanded_one_at_a_time(tmp_path: Path) -> None:
    most = LIMITS.part_bytes_most
    bombs = [sealed(part_message(b"t" * 16, 0, most, bytes(most), compress=True)) for _ in range(8)]
    assert sum(len(one.messages[0].content) for one in bombs) < 64 * 1024
    inbox = Inbox(tmp_path)
    tracemalloc.start()
    try:
        inbox.record(bombs)
        assert tracemalloc.get_traced_memory()[1] < 3.5 * most
    finally:
        tracemalloc.stop()
    inbox.close()


HOSTILE = [
    ["../../../evil"],
    ["..", "..", "up"],
    ["/etc/passwd"],
    ["C:\\Windows\\x"],
    ["a\x1b[31m\nb"],
    ["CON"],
    ["con.csv"],
    ["aux .txt"],
    ["COM¹"],
    ["nul\x00.csv"],
    [".bashrc"],
    [" . "],
    [""],
    ["a" * 5000],
    ["ü" * 200 + ".vcf.gz"],
    ["Résumé.csv"],
    ["Re\u0301sume\u0301.csv"],
    ["DATA.csv"],
    ["data.csv"],
    ["\u202egpj.exe"],
    ["x", "..", "y"],
    [".partial", "x"],
    ["trailing. "],
    ["a:b"],
    ["-rf"],
    ["\ud7ff\ue000"],
]


@pytest.mark.parametrize("as_message", [True, False])
def test_no_name_leads_elsewhere_or_replaces_anything(tmp_path: Path, as_message: bool) -> None:
    home = tmp_path / "home"
    inbox = Inbox(home)
    outside = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and home not in path.parents
    }
    for number, names in enumerate(HOSTILE):
        content = str(number).encode()
        if as_message:
            name = "/".join(names)[: LIMITS.header_value_bytes]
            inbox.record(
                [sealed(Message(content, "text/csv", {"filename": name}), queue="box.CA-RC")]
            )
        else:
            inbox.record(in_parts(content, names))
    assert len(completed(inbox)) == len(HOSTILE)
    inbox.close()
    top = home / "incoming" / SENDER
    contents = {path.read_bytes() for path in top.rglob("*") if path.is_file()}
    assert contents == {str(number).encode() for number in range(len(HOSTILE))}
    for path in top.rglob("*"):
        name = path.name
        assert not name.startswith(".")
        assert len(name.encode()) <= 126
        assert name.isprintable()
        assert name.partition(".")[0].rstrip().upper() not in ("CON", "AUX", "NUL", "COM¹")
    names = [places.key(path) for path in top.rglob("*") if path.is_file()]
    assert len(names) == len(HOSTILE)
    now = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and home not in path.parents
    }
    assert now == outside


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    top = home / "incoming" / SENDER
    top.mkdir(parents=True)
    try:
        (top / "dir").symlink_to(elsewhere, target_is_directory=True)
        (top / "dangling").symlink_to(tmp_path / "made.txt")
    except OSError:
        pytest.skip("no links here")
    inbox = Inbox(home)
    inbox.record([*in_parts(b"1", ["dir", "x"]), *in_parts(b"2", ["dangling"])])
    assert len(completed(inbox)) == 2
    inbox.close()
    assert list(elsewhere.iterdir()) == []
    assert not (tmp_path / "made.txt").exists()
    assert (top / "dir (2)" / "x").read_bytes() == b"1"


def test_names_that_a_file_system_holds_for_one_get_numbers(tmp_path: Path) -> None:
    first = free_place(tmp_path, safe_place(SENDER, ["Data.vcf.gz"]))
    taken = {places.key(first)}
    second = free_place(tmp_path, safe_place(SENDER, ["dATA.VCF.GZ"]), taken)
    assert second.name == "dATA (2).VCF.GZ"


def test_what_was_sent_as_a_file_is_one_whatever_its_size(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    small = Message(
        b"a,b\n",
        "text/csv",
        {"filename": "small.csv", "run": "7", "modified_at": "1700000000000"},
        5,
    )
    inbox.record(
        [
            sealed(small, queue="box.CA-RC"),
            *in_parts(b"a,b\n", ["large.csv"], modified=1_700_000_000_000),
        ]
    )
    arrived = completed(inbox)
    assert sorted(one.filename for one in arrived) == ["large.csv", "small.csv"]
    inbox.close()
    two, one = sorted(lines(tmp_path), key=lambda line: str(line["content"]["filename"]))
    for line in (one, two):
        content = line["content"]
        assert Path(content["file"]).read_bytes() == b"a,b\n"
        assert Path(content["file"]).is_absolute()
        assert Path(content["file"]).stat().st_mtime == 1_700_000_000
        assert content["sha256"] == hashlib.sha256(b"a,b\n").hexdigest()
        assert (content["size"], content["content_type"]) == (4, "text/csv")
        assert content["modified_at"] == "2023-11-14T22:13:20.000Z"
    assert set(one["content"]) == set(two["content"])
    assert one["headers"]["run"] == "7"
    assert one["sent_timestamp"] == "1970-01-01T00:00:00.005Z"


class Died(BaseException):
    """The machine died here."""


def deaths() -> list[Callable[[pytest.MonkeyPatch], None]]:
    def before_the_move(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(arriving, "move", _die)

    def after_the_move(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(arriving.IncomingFiles, "_finish", _die)

    def while_it_is_checked(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(arriving.IncomingFiles, "settle", _die)

    def between_link_and_unlink(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Path, "unlink", _die)

    return [before_the_move, after_the_move, while_it_is_checked, between_link_and_unlink]


def _die(*_: object, **__: object) -> None:
    raise Died


@pytest.mark.parametrize("death", deaths(), ids=lambda one: one.__name__)
@pytest.mark.parametrize("plain", [True, False])
def test_a_file_is_there_once_wherever_the_machine_died(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    death: Callable[[pytest.MonkeyPatch], None],
    plain: bool,
) -> None:
    storage = InboxStorage(tmp_path / "incoming", BOX, plain)
    inbox = Inbox(tmp_path, storage=storage)
    small = sealed(Message(b"s", "text/csv", {"filename": "small.csv"}), queue="box.CA-RC")
    inbox.record([*in_parts(b"l" * 100_000, ["large.csv"]), small])
    with monkeypatch.context() as patch:
        death(patch)
        try:
            completed(inbox)
        except Died:
            pass
    inbox.close()
    again = Inbox(tmp_path, storage=storage)
    completed(again)
    assert completed(again) == []
    assert {receipt for receipt, _ in receipts(again).values()} == {None}
    (kept,) = again._db.execute("SELECT count(*) FROM lines").fetchone()
    again.close()
    assert kept == 2
    if plain:
        assert files_below(tmp_path / "incoming") == ["FL-LAB/large.csv", "FL-LAB/small.csv"]
        assert sorted(line["content"]["filename"] for line in lines(tmp_path)) == [
            "large.csv",
            "small.csv",
        ]
    else:
        assert not (tmp_path / "incoming").exists()


# -- hashes of what arrived ------------------------------------------------------------------------


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where stored files are read."""
    found: list[int] = []
    read = ClearFile.read

    def noted(self: ClearFile, size: int, at: int) -> bytes:
        found.append(at)
        return read(self, size, at)

    monkeypatch.setattr(ClearFile, "read", noted)
    return found


PART = 64 * 1024


@pytest.mark.parametrize(
    ("order", "back"),
    [([0, 1, 2, 3], []), ([0, 2, 1, 3], [2, 3]), ([1, 2, 0, 3], [1, 2, 3]), ([3, 0, 1, 2], [3])],
)
def test_only_what_came_out_of_order_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[int], back: list[int]
) -> None:
    content = os.urandom(3 * PART + 10)
    *parts, manifest = in_parts(content, ["whole.bin"])
    inbox = Inbox(tmp_path)
    for number in order:  # each closes the hidden file
        inbox.record([parts[number]])
    inbox.record([manifest])
    found = reads(monkeypatch)
    assert len(completed(inbox)) == 1
    inbox.close()
    assert found == [number * PART for number in back]
    (line,) = lines(tmp_path)
    assert line["content"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert Path(line["content"]["file"]).read_bytes() == content


def spoil(partial: Path) -> None:
    with partial.open("r+b") as file:
        file.seek(PART // 2)
        file.write(b"spoilt")


def delete(partial: Path) -> None:
    partial.unlink()


def replace(partial: Path) -> None:
    partial.write_bytes(bytes(PART))
    other = partial.with_name("other")
    other.write_bytes(partial.read_bytes())
    other.replace(partial)


@pytest.mark.parametrize("again", [True, False], ids=["reopened", "open"])
@pytest.mark.parametrize("damage", [spoil, delete, replace], ids=lambda one: one.__name__)
@pytest.mark.parametrize("whole", [True, False])
def test_a_part_that_others_damaged_is_noticed(
    tmp_path: Path, again: bool, damage: Callable[[Path], None], whole: bool
) -> None:
    """By the process that wrote it, and by one that did not."""
    *parts, manifest = in_parts(os.urandom(3 * PART), ["whole.bin"])
    inbox = Inbox(tmp_path)
    inbox.record(parts if whole else parts[:2])
    if again:
        inbox.close()
        inbox = Inbox(tmp_path)
    (partial,) = (tmp_path / "incoming" / ".partial" / SENDER).iterdir()
    damage(partial)
    inbox.record([manifest] if whole else [parts[2], manifest])
    assert completed(inbox) == []
    assert last(receipts(inbox)) == (None, 255)
    inbox.close()
    assert files_below(tmp_path / "incoming") == []


@pytest.mark.parametrize("call", ["write", "sync"])
def test_after_an_error_of_the_disk_everything_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    content = os.urandom(2 * PART)
    *parts, manifest = in_parts(content, ["whole.bin"])
    inbox = Inbox(tmp_path)
    inbox.record(parts[:1])
    with monkeypatch.context() as patch:
        patch.setattr(ClearFile, call, _fail)
        with pytest.raises(StoreError):
            inbox.record(parts[1:])
    inbox.record([parts[1], manifest])
    found = reads(monkeypatch)
    assert len(completed(inbox)) == 1
    inbox.close()
    assert found == [0, PART]
    assert lines(tmp_path)[0]["content"]["sha256"] == hashlib.sha256(content).hexdigest()


def _fail(*_: object, **__: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_part_that_another_one_replaced_is_noticed(tmp_path: Path) -> None:
    transfer = os.urandom(16)
    content = os.urandom(2 * PART)
    *parts, manifest = in_parts(content, ["whole.bin"], transfer=transfer)
    other = sealed(part_message(transfer, 0, PART, os.urandom(PART), compress=False))
    inbox = Inbox(tmp_path)
    inbox.record([*parts, other, manifest])
    assert completed(inbox) == []
    assert last(receipts(inbox)) == (None, 255)
    *parts, manifest = in_parts(content, ["again.bin"], transfer=b"t" * 16)
    other = sealed(part_message(b"t" * 16, 0, PART, os.urandom(PART), compress=False))
    inbox.record([other, *parts, manifest])  # the right one came last
    assert len(completed(inbox)) == 1
    inbox.close()


def test_a_manifest_of_other_parts_or_of_short_ones_is_refused(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for pieces, size, hashed in [
        ([b"a" * PART, b"b"], PART + 1, [b"a" * PART, b"c"]),
        ([b"a" * 10, b"b"], PART + 1, [b"a" * 10, b"b"]),
    ]:
        transfer = os.urandom(16)
        hashes = tuple(hashlib.sha256(piece).digest() for piece in hashed)
        manifest = Manifest(transfer, ("x",), size, PART, hashes, 0, "text/csv")
        parts = [part_message(transfer, n, PART, x, compress=False) for n, x in enumerate(pieces)]
        inbox.record([sealed(message) for message in (*parts, manifest_message(manifest))])
        assert completed(inbox) == []
        assert last(receipts(inbox)) == (None, 255)
    inbox.close()


@pytest.mark.parametrize("seed", range(12))
def test_the_outcome_is_as_if_everything_were_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Parts in any order, twice, of another size or content, and an inbox opened in between."""
    random = Random(seed)
    transfer = bytes([seed]) * 16
    content = random.randbytes(random.randrange(100, 500))
    *parts, manifest = in_parts(content, ["f"], part_bytes=64, transfer=transfer)

    def other() -> Received:
        size = random.choice([64, 64, 63, 100])
        number = random.randrange(len(parts) + 1)
        data = random.randbytes(random.randrange(1, size + 1))
        return sealed(part_message(transfer, number, size, data, compress=False))

    script = parts + [random.choice(parts)] * random.randrange(2)
    script += [other() for _ in range(random.randrange(3))]
    if random.random() < 0.7:
        random.shuffle(script)
    opened = {at for at in range(len(script)) if random.random() < 0.1}
    outcomes = []
    for name in ("hashed", "read"):
        home = tmp_path / name
        home.mkdir()
        if name == "read":
            monkeypatch.setattr(arriving, "HASHED_FILES", 0)
        inbox = Inbox(home)
        for at, one in enumerate(script):
            if at in opened:
                inbox.close()
                inbox = Inbox(home)
            inbox.record([one._replace(envelope_id=IDS.next())])
        inbox.record([manifest._replace(envelope_id=IDS.next())])
        arrived = [Path(one.file).read_bytes() for one in completed(inbox)]
        outcomes.append((arrived, last(receipts(inbox))))
        inbox.close()
    assert outcomes[0] == outcomes[1]


def test_what_came_in_part_is_given_up_after_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: clock.now_ms())
    *parts, manifest = in_parts(b"x" * 100_000, ["late.bin"])
    inbox = Inbox(tmp_path)
    inbox.record([parts[0], manifest])
    assert completed(inbox) == []
    (partial,) = (tmp_path / "incoming" / ".partial" / SENDER).iterdir()
    orphan = partial.with_name("ab" * 16)
    orphan.write_bytes(b"of a step that was killed")
    os.utime(orphan, (1, 1))
    inbox.tidy()
    assert partial.exists()
    assert not orphan.exists()
    inbox._db.execute("UPDATE transfers SET changed_at = 1")
    inbox.tidy()
    assert not partial.exists()
    assert last(receipts(inbox)) == (None, 255)
    inbox.record(parts[1:])
    assert completed(inbox) == []
    inbox.close()


def as_directory(names: Sequence[str], name: str = "run") -> list[Received]:
    """A directory whose files hold their own numbers."""
    contents = [str(number).encode() for number in range(len(names))]
    *parts, _ = in_parts(b"".join(contents), [name], transfer=b"d" * 16)
    entries = tuple(
        Entry(one, len(content), 5) for one, content in zip(names, contents, strict=True)
    )
    whole = b"".join(contents)
    hashes = (hashlib.sha256(whole).digest(),)
    manifest = Manifest(
        b"d" * 16, (name,), len(whole), 64 * 1024, hashes, 0, "inode/directory", entries
    )
    return [*parts, sealed(manifest_message(manifest))]


def test_no_name_in_a_directory_leads_out_of_it(tmp_path: Path) -> None:
    names = [
        "../../evil",
        "/etc/passwd",
        "a/../../../up",
        "same",
        "same/inside",
        "Same",
        "CON/nul.txt",
        ".h/.x",
    ]
    inbox = Inbox(tmp_path / "home")
    inbox.record(as_directory(names))
    (one,) = completed(inbox)
    inbox.close()
    top = tmp_path / "home" / "incoming" / SENDER
    assert [path.name for path in top.iterdir()] == ["run"]
    found = {path.read_bytes() for path in Path(one.file).rglob("*") if path.is_file()}
    assert found == {str(number).encode() for number in range(len(names))}
    assert not any(
        name.startswith(".")
        for path in Path(one.file).rglob("*")
        for name in path.relative_to(top).parts
    )
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("death", ["unpack", "move_directory", "_finish"])
def test_a_directory_is_there_once_wherever_the_machine_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    inbox = Inbox(tmp_path)
    inbox.record(as_directory(["a/b", "a/c", "d"]))
    with monkeypatch.context() as patch:
        if death == "unpack":
            patch.setattr(unpacking, "open_exclusive", _die)
        else:
            patch.setattr(arriving.IncomingFiles if death == "_finish" else arriving, death, _die)
        with pytest.raises(Died):
            completed(inbox)
    inbox.close()
    again = Inbox(tmp_path)
    completed(again)
    again.close()
    assert files_below(tmp_path / "incoming") == [
        "FL-LAB/run/a/b",
        "FL-LAB/run/a/c",
        "FL-LAB/run/d",
    ]
    assert len(lines(tmp_path)) == 1
    assert list((tmp_path / "incoming" / ".partial" / SENDER).iterdir()) == []


def test_a_manifest_of_a_directory_that_does_not_fit_is_malformed(tmp_path: Path) -> None:
    good = as_directory(["a", "b"])[-1].messages[0].content
    assert len(read_manifest(good).entries) == 2
    for wrong in (
        b'"version":3',
        b'"entries":[["a",1,5]]',
        b'"entries":[["a",2,5],["b",1,5]]',
        b'"entries":[[1,1,5]]',
        b'"entries":[["a",1]]',
        b'"entries":7',
        b'"entries":[["a",-2,5],["b",4,5]]',
    ):
        key, _, value = wrong.partition(b":")
        document = orjson.loads(good)
        document[key.decode().strip('"')] = orjson.loads(value)
        with pytest.raises(MalformedEnvelope):
            read_manifest(orjson.dumps(document))


@pytest.mark.parametrize("keep_contents", [False, True])
def test_a_manifest_with_texts_of_megabytes_ends_with_that_file(
    tmp_path: Path, keep_contents: bool
) -> None:
    inbox = Inbox(tmp_path, keep_contents=keep_contents)
    *parts, manifest = in_parts(b"x", ["n" * 4_000_000 + ".csv"])
    content = manifest.messages[0].content
    long_type = sealed(
        Message(content.replace(b"text/csv", b"t" * 300), manifest.messages[0].content_type)
    )
    inbox.record([*parts, long_type, manifest])
    (one,) = completed(inbox)
    inbox.close()
    assert len(os.path.basename(one.file)) == 120
    assert one.file.endswith("n.csv")


def test_thousands_of_files_of_one_name_are_named_fast(tmp_path: Path) -> None:
    names = {
        free_place(tmp_path, safe_place(SENDER, ["x.csv"]), Everything()).name for _ in range(3)
    }
    assert len(names) == 3


class Everything:
    """Of names: all with a plain number are taken."""

    def __contains__(self, path: object) -> bool:
        stem = str(path).rpartition("/")[2]
        return stem == "x.csv" or (stem[3:-5].isdecimal() and len(stem[3:-5]) < 8)


def test_a_directory_of_too_many_directories_is_malformed() -> None:
    deep = "/".join(["d"] * 33)
    entries = tuple(Entry(f"{number}/{deep[2:]}", 0, 0) for number in range(7000))
    manifest = Manifest(b"d" * 16, ("run",), 0, 64 * 1024, (), 0, "inode/directory", entries)
    with pytest.raises(MalformedEnvelope, match="too many directories"):
        read_manifest(manifest_message(manifest).content)


@pytest.mark.parametrize("password", [False, True], ids=["clear", "password"])
@pytest.mark.parametrize("kind", ["part", "file as message"])
def test_the_contents_of_a_large_message_are_not_copied(
    tmp_path: Path, kind: str, password: bool
) -> None:
    size = 4 * 1024 * 1024
    message = (
        part_message(os.urandom(16), 0, size, os.urandom(size), compress=False)
        if kind == "part"
        else Message(os.urandom(size), "application/octet-stream", {"filename": "scan.tif"})
    )
    one = sealed(message)._replace(messages=unpack(pack([message]), 1, 1_759_906_980_123))
    storage = InboxStorage(tmp_path / "incoming", box=BOX, plain=not password)
    box = Inbox(tmp_path, storage=storage)
    tracemalloc.start()
    try:
        message_count(one)
        box.record([one])
        assert tracemalloc.get_traced_memory()[1] < size // 2
    finally:
        tracemalloc.stop()
        box.close()
