"""The one file: it builds twice to the same bytes, starts on its own, and plays the demo."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import cipherbox
from cipherbox.ops.unpack import CACHE_VARIABLE, platform_name, python_name
from tests import soak
from tests.warm import IMPORTS

from .conftest import ENVIRONMENT, builder, children_s

ROOT = Path(__file__).resolve().parent.parent.parent


def run(
    pyz: Path, root: Path, *arguments: str, options: tuple[str, ...] = ("-I",)
) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, CACHE_VARIABLE: str(root)}
    command = [sys.executable, *options, str(pyz), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@soak.only
def test_two_builds_give_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    builder().build(tmp_path / "elsewhere" / "cipherbox.pyz")
    for name in (pyz.name, f"{pyz.name}.cdx.json"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == pyz.with_name(name).read_bytes()


def test_the_bill_of_materials_names_what_is_in_it(pyz: Path) -> None:
    """Every package pinned for this system, the wheels, and what the wheels are made of."""
    bill = json.loads(pyz.with_name(f"{pyz.name}.cdx.json").read_text("utf-8"))
    own = bill["metadata"]["component"]
    assert own["hashes"][0]["content"] == hashlib.sha256(pyz.read_bytes()).hexdigest()
    pinned = builder().requirements(sys.platform)
    found = {f"{one['name']}=={one['version']}" for one in bill["components"]}
    assert found == set(re.findall(r"^([a-z0-9-]+==[\w.]+)", pinned, re.MULTILINE))
    for one in bill["components"]:
        [wheel] = [part for part in one["components"] if part["type"] == "file"]
        assert f"sha256:{wheel['hashes'][0]['content']}" in pinned
    inside = {part["name"] for one in bill["components"] for part in one["components"]}
    assert "openssl" in inside
    refs = {one["bom-ref"] for one in bill["components"]} | {"cipherbox"}
    for row in bill["dependencies"]:
        assert {row["ref"], *row["dependsOn"]} <= refs


def test_it_holds_the_product_and_nothing_of_this_machine(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert "site/cipherbox/manual/quickstart.md" in names
        assert "site/cipherbox/units/cipherbox.service" in names
        assert any(
            name.startswith("site/cipherbox/store/") and name.endswith(".sql") for name in names
        )
        assert f"native/{platform_name()}/any/cryptography/hazmat/bindings/_rust.abi3.so" in names
        assert any(
            name.startswith(f"native/{platform_name()}/{python_name()}/orjson/") for name in names
        )
        assert [
            n
            for n in names
            if "__pycache__" in n or n.endswith((".pyc", "direct_url.json", "/RECORD"))
        ] == []
        here = str(ROOT).encode()
        assert [
            n for n in names if n.startswith("site/cipherbox") and here in archive.read(n)
        ] == []
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_starts_on_its_own(pyz: Path, tmp_path: Path) -> None:
    done = run(pyz, tmp_path / "root", "version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"CipherBox {cipherbox.__version__}")
    (unpacked,) = [path for path in (tmp_path / "root").iterdir() if path.is_dir()]
    assert unpacked.name.endswith(f"-{python_name()}")
    done = run(pyz, tmp_path / "root", "manual", "quickstart")
    assert done.stdout.startswith("# Quickstart")


def test_all_that_any_command_imports_is_in_it(pyz: Path, tmp_path: Path) -> None:
    """Every module, and what its functions import when they run, where nothing is installed."""
    wanted = set()
    for file in (ROOT / "cipherbox").rglob("*.py"):
        if file.name != "__main__.py" and "manual" not in file.relative_to(ROOT).parts:
            wanted.add(".".join(file.relative_to(ROOT).with_suffix("").parts))
            found = IMPORTS.findall(file.read_text("utf-8"))
            wanted |= {name for both in found for name in both if name}
    wanted = {name for name in wanted if find_spec(name.partition(".")[0])}  # not another system's
    assert len(wanted) > 400
    script = tmp_path / "script.py"
    script.write_text(
        f"import importlib, cipherbox\nfor name in {sorted(wanted)}:\n"
        "    importlib.import_module(name)\nprint(cipherbox.__file__)\n"
    )
    cache = pyz.parent / "cache"
    done = run(pyz, cache, "python", str(script), options=("-I", "-S"))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout).is_relative_to(cache)


def test_it_refuses_a_folder_that_others_may_write(pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)
    done = run(pyz, root, "version")
    assert done.returncode == 6
    assert f"chmod go-w {root}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(root.iterdir()) == []


def test_it_says_where_it_cannot_unpack(pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = run(pyz, tmp_path / "file" / "cache", "version")
    assert done.returncode == 6
    assert "cannot unpack itself" in done.stderr
    assert CACHE_VARIABLE in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_that_was_killed_leaves_nothing_that_counts(pyz: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / ".part-x" / "cipherbox").mkdir(parents=True)
    root.chmod(0o700)
    os.utime(root / ".part-x", (1, 1))
    assert run(pyz, root, "version").returncode == 0
    assert [path.name for path in root.iterdir() if path.name.startswith(".")] == []


def test_many_first_starts_at_once(pyz: Path, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, CACHE_VARIABLE: str(tmp_path / "root")}
    command = [sys.executable, "-I", str(pyz), "version"]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(4)
    ]
    assert [process.wait(300) for process in started] == [0, 0, 0, 0]
    assert len(list((tmp_path / "root").iterdir())) == 1


def test_it_keeps_its_own_bytecode_and_none_of_others(pyz: Path, tmp_path: Path) -> None:
    """Where bytecode is unwanted, as in containers, every start would compile everything again."""
    root, script = tmp_path / "root", tmp_path / "program" / "script.py"
    script.parent.mkdir()
    script.write_text("import beside\n")
    (script.parent / "beside.py").write_text("import cipherbox.errors\nprint('ran')\n")
    done = subprocess.run(
        [sys.executable, "-B", str(pyz), "python", str(script)],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, CACHE_VARIABLE: str(root)},
        timeout=300,
        check=False,
    )
    assert done.stdout == "ran\n", done.stderr
    [folder] = root.iterdir()
    assert list(folder.glob("cipherbox/cli/__pycache__/main.*.pyc"))
    assert not (script.parent / "__pycache__").exists()


def test_it_starts_fast_enough(pyz: Path, tmp_path: Path) -> None:
    """In CPU, and measured by what Python itself needs to start here now: the machine may be
    slow, or busy.
    """
    bare, first, later = [], [], []
    for number in range(5):
        before = children_s()
        subprocess.run([sys.executable, "-I", "-c", "import json"], check=True)
        bare.append(children_s() - before)
        before = children_s()
        assert run(pyz, tmp_path / str(number if number < 2 else 0), "version").returncode == 0
        (first if number < 2 else later).append(children_s() - before)
    python_s = sum(bare) / len(bare)  # the least of them may be 0: the system counts in hundredths
    assert min(first) < 60 * python_s, (first, bare)
    assert min(later) < 12 * python_s, (later, bare)


def test_every_file_of_the_package_is_in_it() -> None:
    """Templates and styles of the page, SQL, the manual: whatever its suffix."""
    top = Path(__file__).resolve().parents[2]
    files = {
        path.relative_to(top).as_posix()
        for path in (top / "cipherbox").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - set(builder().own()) == set()
