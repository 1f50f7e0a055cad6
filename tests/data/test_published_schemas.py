"""Published schemas are frozen: another table needs another number.  What is older than 0.5.0 is
refused, and the refusal names the way.  Each release freezes what it adds (page `contributing`).
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import cipherbox
from cipherbox.cli.exits import advice
from cipherbox.client.inbox import schema as inbox
from cipherbox.client.outbox import outbox
from cipherbox.client.sessions import secure_socket
from cipherbox.errors import SchemaTooOld
from cipherbox.limits import LIMITS
from cipherbox.store import postgres, sqlite
from cipherbox.store.files import Files
from cipherbox.store.sqlite import database
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.inspect import inspect_store
from cipherbox.store.sqlite.shape import OLDEST
from cipherbox.store.sqlite.store import DATABASE, open_store

FILES = {
    (
        sqlite,
        "0001_initial.sql",
    ): "5680ce07f428b27c737d3977c877d4badcf757e14dd7085db752830796e307f0",
    (sqlite, "0002_log.sql"): "06896009475f17fe6322d8c876996a74d06d4c7d36bf529e19c69da2016fd3d7",
    (
        sqlite,
        "0003_dead_letters.sql",
    ): "19aea1539124ebc9ef2389bbcd76538b91d5029610508ed683aadcd9e3bbd280",
    (
        sqlite,
        "0004_prekeys.sql",
    ): "14a752787ffc1fe6eb8136a930021def5272fc165a03c11ab92a068ddf76e98d",
    (
        postgres,
        "0001_initial.sql",
    ): "8369170f6fbedf7f752260e452f5c7881bd46caa84fbc6bf785cb250d3714c9a",
    (
        postgres,
        "0002_prekeys.sql",
    ): "1d39ec734330aef4fe56cdf50523ca57b9e0c4eb25c5aa55c9441ded567a5dc4",
}
CLIENTS: dict[object, tuple[int, str]] = {  # the steps of 0.5.0: how many, and their hash
    outbox: (4, "c86bcefc5427acaff491bc085e8ad9ec54422271fa1002172c5fcdab78b0b43b"),
    inbox: (4, "e93eae590a3aeca5ec63ab272602d978d4bb9fe5ad2f52cab1b036cc6dd17bd2"),
    secure_socket: (1, "9c8abe233caaac3db65290d17aab8b846c84ef92ddcc0952d2f245325c01950c"),
}
RELEASED = {sqlite: 4, postgres: 2}  # files of 0.5.0
FIX = "this step was published: never edit it, add another"
# Of 0.1.0's first schema, which was edited in place afterwards: its bodies, and its bundles of
# binary columns.
EDITED = (
    "DROP VIEW public_keys; DROP TABLE bodies; DROP TABLE bundles; CREATE TABLE bodies (number "
    "INTEGER PRIMARY KEY, stored_hash BLOB NOT NULL, data BLOB, spool TEXT); CREATE TABLE "
    "bundles (client TEXT NOT NULL, sequence INTEGER NOT NULL, bundle_hash BLOB NOT NULL, "
    "ciphertext BLOB NOT NULL, nonce BLOB NOT NULL, tag BLOB NOT NULL, added_at INTEGER NOT "
    "NULL, ends_at INTEGER NOT NULL, PRIMARY KEY (client, sequence)) WITHOUT ROWID; CREATE VIEW "
    "public_keys AS SELECT client AS client_id, lower(hex(ciphertext)) AS public_key_ciphertext, "
    "lower(hex(nonce)) AS nonce, lower(hex(tag)) AS tag FROM bundles"
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(("package", "name"), FILES)
def test_published_schema_files_are_frozen(package: object, name: str) -> None:
    (place,) = package.__path__  # type: ignore[attr-defined]
    assert digest((Path(place) / name).read_text("utf-8")) == FILES[package, name], FIX


@pytest.mark.parametrize("module", CLIENTS)
def test_published_steps_of_a_clients_databases_are_frozen(module: object) -> None:
    count, wanted = CLIENTS[module]
    assert digest("\0".join(module.STEPS[:count])) == wanted, FIX  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", RELEASED)
def test_every_published_file_is_frozen(package: object) -> None:
    (place,) = package.__path__  # type: ignore[attr-defined]
    names = sorted(path.name for path in Path(place).glob("*.sql"))
    assert [name for of, name in FILES if of is package] == names[: RELEASED[package]]
    assert [int(name[:4]) for name in names] == [*range(1, len(names) + 1)]


def test_each_release_left_its_data_and_froze_its_schemas() -> None:
    """From 0.5.0 on; the version in the making has neither yet."""
    top = Path(__file__).resolve().parents[2]
    versions = re.findall(r"(?m)^## (\d+\.\d+\.\d+)", (top / "CHANGELOG.md").read_text("utf-8"))
    released = versions[versions.index(cipherbox.__version__) + 1 : versions.index("0.4.0")]
    assert released
    found = {path.name.removesuffix(".tar.xz") for path in Path(__file__).parent.glob("*.tar.xz")}
    assert found == set(released), "page contributing, section A release"
    assert max(path.stat().st_size for path in Path(__file__).parent.glob("*.tar.xz")) < 1_000_000


def of_version(path: Path, version: int) -> None:
    """A store as a program with so many schema files makes it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for step in database.scripts()[:version]:
            db.executescript(step)
        db.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {version}")


def refused(path: Path) -> None:
    before = path.read_bytes()
    for look in (
        lambda: open_store(path.parent, create=False, files=Files(), limits=LIMITS),
        lambda: inspect_store(path),
        lambda: inspect_store(path, pages=False),  # `config check`
        lambda: SqliteSource(path.parent, path.name),  # `backup`
    ):
        with pytest.raises(SchemaTooOld, match=r"before 0\.5\.0") as caught:
            look()
        assert "deliver what waits" in str(caught.value.remedy or advice(caught.value))
    assert path.read_bytes() == before


def test_a_store_of_0_5_0_is_opened(tmp_path: Path) -> None:
    of_version(tmp_path / DATABASE, OLDEST)
    open_store(tmp_path, create=False, files=Files(), limits=LIMITS).close()
    inspect_store(tmp_path / DATABASE)


@pytest.mark.parametrize("version", range(1, OLDEST))
def test_an_older_store_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    of_version(tmp_path / DATABASE, version)
    refused(tmp_path / DATABASE)


def test_a_store_with_a_number_of_today_over_other_tables_is_refused(tmp_path: Path) -> None:
    of_version(tmp_path / DATABASE, OLDEST)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db:
        db.executescript(EDITED)
    refused(tmp_path / DATABASE)
