"""How the file is put together: each wheel's file once, below what needs it, and only what is ever loaded of it."""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from cipherbox.ops import unpack
from tests.e2e.conftest import builder

ROOT = Path(__file__).resolve().parent.parent
GLIBC, MUSL = "linux-x86_64", "linux-musl-x86_64"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    return builder()


def test_files_are_kept_once_and_below_what_needs_them(build: ModuleType) -> None:
    parts = {
        (GLIBC, "cp311"): {"a.py": b"a", "x.abi3.so": b"g", "y.cpython-311.so": b"g11", "extra.py": b"e"},
        (GLIBC, "cp312"): {"a.py": b"a", "x.abi3.so": b"g", "y.cpython-312.so": b"g12", "extra.py": b"e"},
        (MUSL, "cp311"): {"a.py": b"a", "x.abi3.so": b"m", "y.cpython-311.so": b"m11"},
        (MUSL, "cp312"): {"a.py": b"a", "x.abi3.so": b"m", "y.cpython-312.so": b"m12"},
    }
    assert build.arranged(parts) == {
        "site/a.py": b"a",
        f"native/{GLIBC}/any/extra.py": b"e",
        f"native/{GLIBC}/any/x.abi3.so": b"g",
        f"native/{MUSL}/any/x.abi3.so": b"m",
        f"native/{GLIBC}/cp311/y.cpython-311.so": b"g11",
        f"native/{GLIBC}/cp312/y.cpython-312.so": b"g12",
        f"native/{MUSL}/cp311/y.cpython-311.so": b"m11",
        f"native/{MUSL}/cp312/y.cpython-312.so": b"m12",
    }


def test_a_file_that_differs_between_pythons_cannot_be_in_one_tree(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"a\.py differs"):
        build.arranged({(GLIBC, "cp311"): {"a.py": b"1"}, (GLIBC, "cp312"): {"a.py": b"2"}})


def test_a_start_takes_what_fits_and_an_installation_every_python(tmp_path: Path) -> None:
    names = ["site/a.py", f"native/{GLIBC}/any/b.so", f"native/{GLIBC}/cp311/c.so", f"native/{GLIBC}/cp312/d.so"]
    names += [f"native/{MUSL}/any/b.so", f"native/{MUSL}/cp311/c.so", "unpack.py", "build"]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        for name in names:
            made.writestr(name, name)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        unpack.unpack(archive, tmp_path / "start", GLIBC, ("cp311",))
        unpack.unpack(archive, tmp_path / "all", GLIBC, None)
    assert {p.name: p.read_text() for p in (tmp_path / "start").iterdir()} == {
        "a.py": "site/a.py", "b.so": f"native/{GLIBC}/any/b.so", "c.so": f"native/{GLIBC}/cp311/c.so",
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "all").iterdir()} == {"a.py", "b.so", "c.so", "d.so"}
    assert unpack.fits(names, GLIBC, "cp312") == ""
    assert "this file is for Python 3.11, 3.12, and this is 3.13" in unpack.fits(names, GLIBC, "cp313")
    assert "and this machine is windows-amd64" in unpack.fits(names, "windows-amd64", "cp312")


def test_what_the_system_loads_stays_byte_for_byte(build: ModuleType) -> None:
    import orjson.orjson as module

    whole = Path(str(module.__file__)).read_bytes()
    kept = build.without_debugging(whole + b"debugging" * 1000)
    size_kept, same = len(kept), kept[64:] == whole[64 : len(kept)]
    assert size_kept <= len(whole)
    assert same
    changed = {at for at in range(64) if kept[at] != whole[at]}
    assert changed <= {*range(40, 48), *range(58, 64)}  # where the table of sections was
    (at,), (size, count) = struct.unpack_from("<Q", whole, 32), struct.unpack_from("<HH", whole, 54)
    for number in range(count):
        offset, in_file = struct.unpack_from("<Q16xQ", whole, at + number * size + 8)
        end = offset + in_file
        assert end <= size_kept
    assert build.without_debugging(b"MZ, of Windows") == b"MZ, of Windows"


def test_each_system_gets_its_requirements(build: ModuleType) -> None:
    linux, windows = build.requirements("linux"), build.requirements("win32")
    assert "colorama" in windows
    assert "colorama" not in linux
    assert " ; " not in windows + linux
    names = re.findall(r"(?m)^([a-z0-9-]+)==", linux)
    assert {"cryptography", "pynacl", "orjson", "zstandard", "trio"} <= set(names)
    assert linux.count("--hash=sha256:") > 4 * 4 * 3


def test_every_platform_has_its_tags_and_this_machine_is_named_as_the_build_names_it(build: ModuleType) -> None:
    assert {"linux-x86_64", "linux-aarch64", "linux-musl-x86_64", "linux-musl-aarch64", "macos-arm64"} < set(build.TAGS)
    assert "windows-amd64" in build.TAGS
    assert build.PYTHONS == ("3.11", "3.12", "3.13", "3.14")
    if sys.platform == "linux":
        assert unpack.platform_name() in build.TAGS


def test_the_first_lines_can_be_read_by_any_python(build: ModuleType) -> None:
    """Whoever starts it with an old Python is told so, instead of a syntax error."""
    text = build.MAIN.format(build="x")
    compile(text, "main", "exec")
    early = text[: text.index("from unpack")]
    assert not re.search(r'\bf"|:=|match ', early)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is 3\.9"):
        exec(early.replace("import sys", ""), {"sys": type("old", (), {
            "version_info": (3, 9, 1), "argv": ["x.pyz"], "exit": sys.exit,
        })})  # fmt: skip
