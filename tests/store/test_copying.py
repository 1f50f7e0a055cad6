"""Copies from any store to any store, compared; a snapshot beside a store that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import LogRow
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import Damaged, StoreUnavailable
from cipherbox.store.copying import COPYING, TABLES, Source, copy, sums_of
from cipherbox.store.port import BundleRow, CertificateRow, Enrolment, Store
from cipherbox.store.postgres.copying import PostgresSource
from cipherbox.store.postgres.store import PostgresStore
from cipherbox.store.postgres.target import Target
from cipherbox.store.spool import Place as SpoolPlace
from cipherbox.store.spool import SpoolSnapshot
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import DATABASE
from tests import postgres
from tests.store.faults import opened
from tests.store.suite import AT, Driver, bodies_of, incoming

LARGE = 200_000


class Place:
    """Where a store is: opens it, and looks at it as a source."""

    def __init__(self, kind: str, path: Path, server: postgres.Server) -> None:
        self.kind, self.path = kind, path
        self.path.mkdir()
        bodies = "spool" if kind == "postgresql with a spool" else "database"
        self.target: Target = postgres.target(server, postgres.schema(), bodies=bodies)

    def open(self) -> Store:
        if self.kind == "sqlite":
            return opened(self.path)
        return PostgresStore(self.target, self.path, create=True, force=True)

    def source(self) -> Source:
        if self.kind == "sqlite":
            return SqliteSource(self.path, DATABASE)
        return PostgresSource(self.target, self.path)


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def lived_in(store: Store) -> Driver:
    """A store with something in every table, and some of it gone again."""
    driver = Driver(store).clients()
    driver.run(
        m.DeclareExchange(0, "", 1, "e", m.ExchangeType.TOPIC),
        m.DeclareQueue(0, "", 2, "q", "B", ("C",), 6, 9),
        m.Bind(0, "", 3, "e", "q", "a.#"),
        m.Grant(0, "", 4, "A", "publish", "e", True),
        m.LimitClient(0, "", 5, "A", "bytes", 1 << 40),
        m.TellContacts(0, "C", 6, ContactLists(("A",), ("B",))),
    )
    driver.publish(
        *[incoming(i, b"%d" % i) for i in range(1, 30)],
        incoming(30, b"L" * LARGE),
        incoming(31, b"M" * LARGE, to=("B", "C")),
    )
    driver.consume()
    driver.run(
        m.Ack(2, "B", 1, "box.B", [(1, 20)]),
        m.Nack(2, "B", 2, "box.B", 25, False, 5, "bad"),
        m.Nack(2, "B", 3, "box.B", 26, False, 5, "worse"),
        m.Ack(2, "B", 4, "box.B", [(31, 1)]),
    )
    driver.run(m.RedriveOrDiscard(0, "", 9, "box.B", [(25, 1)], False))
    store.put_bundle(BundleRow("A", 1, b"h" * 32, b"\xff\x00", b"n" * 12, b"t" * 16, AT, AT + 9))
    store.put_prekeys("A", b"signed", [(2, b"two"), (1, b"\x00one")], 9, False)
    store.put_enrolment(
        Enrolment(
            b"s" * 32, "A", "client", True, AT, AT + 9, "waiting", b"csr", "1234", (b"a", b"bb")
        )
    )
    store.put_certificate(CertificateRow("ab12", "A", AT, AT + 9, 0, b"der"))
    store.put_setting("history", b"\x00\x01")
    store.fill("old_log", [(1, AT, b"head", b"sig", b"body")])
    for index in (1, 2):
        row = LogRow(index, AT, b"record", bytes(index * 50_000), b"nodes", bytes(16))
        driver.log = row
        driver.publish(
            incoming(30 + 10 * index, b"logged"), incoming(31 + 10 * index, b"L" * LARGE)
        )
    return driver


KINDS = ("sqlite", "postgresql", "postgresql with a spool")


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("origin", KINDS)
def test_a_copy_holds_what_the_original_holds(
    tmp_path: Path, postgresql: postgres.Server, closing: ExitStack, origin: str, to: str
) -> None:
    first, second = Place(origin, tmp_path / "a", postgresql), Place(to, tmp_path / "b", postgresql)
    store = first.open()
    closing.callback(store.close)
    lived_in(store)
    source = first.source()
    closing.callback(source.close)
    target = second.open()
    told: list[str] = []
    sums = copy(source, target, lambda table, _: told.append(table))
    assert all(sums[table].rows for table in TABLES), sums
    assert set(told) == set(TABLES)
    target.close()
    check = second.source()
    closing.callback(check.close)
    assert sums_of(check) == sums
    again = second.open()
    closing.callback(again.close)
    assert again.load(1000) == store.load(1000)
    assert again.read_bodies(range(1, 36)) == store.read_bodies(range(1, 36))
    assert [body and body.log_entry for body in again.read_bodies([32, 33, 34, 35, 30])] == [
        1,
        1,
        2,
        2,
        0,
    ]
    for number in range(1, 32):
        assert again.trace("A", incoming(number).envelope_id) == store.trace(
            "A", incoming(number).envelope_id
        )
    assert again.dead_letters("", "", 10, True) == store.dead_letters("", "", 10, True)
    assert again.certificates() == store.certificates()
    assert again.enrolments(["waiting"]) == store.enrolments(["waiting"])
    driver = Driver(again)  # and it goes on where the other stopped
    driver.publish(incoming(60))
    driver.consume()
    driver.run(m.Ack(2, "B", 1, "box.B", [(21, 4)]))
    assert bodies_of(again, [21, 30]) == [None, b"L" * LARGE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_stays_as_it_was(
    tmp_path: Path, postgresql: postgres.Server, closing: ExitStack, kind: str
) -> None:
    place = Place(kind, tmp_path / "a", postgresql)
    store = place.open()
    closing.callback(store.close)
    driver = lived_in(store)
    before = place.source()
    closing.callback(before.close)
    first = next(before.rows("clients"))
    driver.run(m.Ack(2, "B", 7, "box.B", [(21, 10)]))
    driver.publish(incoming(61))
    assert bodies_of(store, [30]) == [None]
    bodies = {row[0]: row[3] for batch in before.rows("bodies") for row in batch}
    assert bodies[30] == b"L" * LARGE
    assert max(bodies) == 35
    assert [row for batch in before.rows("clients") for row in batch] == first
    before.close()
    assert [p.name for p in (tmp_path / "a").iterdir() if p.name.startswith("spool.")] == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql with a spool"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_damaged_body_is_not_passed_on(
    tmp_path: Path, postgresql: postgres.Server, closing: ExitStack, kind: str, lost: bool
) -> None:
    place = Place(kind, tmp_path / "a", postgresql)
    store = place.open()
    lived_in(store)
    store.close()
    file = max((tmp_path / "a" / "spool").iterdir(), key=lambda found: found.stat().st_size)
    if lost:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    source = place.source()
    closing.callback(source.close)
    with pytest.raises(Damaged, match=r"envelope number 3[01]"):
        sums_of(source)


def test_a_snapshot_that_names_what_went_meanwhile_is_begun_again(tmp_path: Path) -> None:
    """HQ writes a file after the first links, and deletes it before the second ones."""
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "1-1.spool").write_bytes(b"one")
    taken = SpoolSnapshot(tmp_path)
    begun = 0

    def begin() -> list[str]:
        nonlocal begun
        begun += 1
        return ["1-1.spool", f"1-{begun + 1}.spool"] if begun < 3 else ["1-1.spool"]

    undone: list[int] = []
    taken.take(begin, lambda: undone.append(begun))
    assert undone == [1, 2]
    (spool / "1-1.spool").unlink()
    assert taken.read(SpoolPlace("1-1.spool", 1), 2) == b"ne"
    assert taken.read(SpoolPlace("../secret", 0), 2) is None
    taken.close()
    assert [p.name for p in tmp_path.iterdir()] == ["spool"]

    def never() -> list[str]:
        nonlocal begun
        begun += 1
        return [f"1-{begun}.spool"]

    with pytest.raises(StoreUnavailable, match="too busy"):
        SpoolSnapshot(tmp_path).take(never, lambda: None)


@pytest.mark.parametrize("to", KINDS)
def test_a_store_that_holds_half_a_copy_is_emptied_and_takes_the_whole(
    tmp_path: Path, postgresql: postgres.Server, closing: ExitStack, to: str
) -> None:
    first, second = (
        Place("sqlite", tmp_path / "a", postgresql),
        Place(to, tmp_path / "b", postgresql),
    )
    store = first.open()
    closing.callback(store.close)
    lived_in(store)
    source = first.source()
    closing.callback(source.close)
    target = second.open()
    epoch = target.epoch
    target.put_setting(COPYING, b"copy")
    copy(source, target, lambda *_: None)  # all of it, and more than its second half could be
    target.put_setting("of another", b"HQ")
    target.empty()
    assert target.load(10).clients == []
    assert target.get_setting(COPYING) == b"copy"
    assert target.epoch == epoch
    sums = copy(source, target, lambda *_: None)
    target.close()
    check = second.source()
    closing.callback(check.close)
    assert sums_of(check) == sums
    if to == "sqlite":
        (kept,) = (second.path / "spool").iterdir()
        assert kept.name.endswith("-0000000002.spool")  # the file of the first is gone


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_at_rest_is_read_without_links(
    tmp_path: Path, postgresql: postgres.Server, closing: ExitStack, kind: str
) -> None:
    """As a backup on a disk that cannot be written: nothing appears beside it."""
    place = Place(kind, tmp_path / "a", postgresql)
    store = place.open()
    lived_in(store)
    store.close()
    before = sorted(path.name for path in place.path.iterdir())
    source: Source = (
        SqliteSource(place.path, DATABASE, still=True)
        if kind == "sqlite"
        else PostgresSource(place.target, place.path, still=True)
    )
    closing.callback(source.close)
    assert {row[0] for batch in source.rows("bodies") for row in batch} >= {30, 31}
    assert sorted(path.name for path in place.path.iterdir()) == before
