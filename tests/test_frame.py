"""The frame around the code: what stands at the top, what the build promises, which words are
not used.
"""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    *("pyproject.toml", "README.md", "Makefile", "LICENSE", "CHANGELOG.md"),
    *("cipherbox", "systemd", "packaging", "tests", ".ci", ".gitignore"),
}
TEXT = {".py", ".md", ".sh", ".toml", ".txt", ".service", ".sql", ".json", ""}


def tracked() -> list[Path]:
    """The project's own files: what git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@functools.cache
def texts() -> list[tuple[Path, str]]:
    return [(path, path.read_text("utf-8")) for path in tracked() if path.suffix in TEXT]


def test_nothing_else_at_the_top() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP


def test_the_makefile_has_its_targets_and_lists_them() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check", "fix", "generate", "pyz", "bench", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    phony = re.search(r"^\.PHONY: (.+)", makefile, re.MULTILINE)
    assert phony
    done = subprocess.run(
        ["make", "-s", "-C", str(ROOT)], capture_output=True, text=True, check=True, timeout=300
    )
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  make ")]
    assert sorted(listed) == sorted(phony[1].split())


def test_ci_runs_check_and_test() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert run.read_text().index("make check") < run.read_text().index("make test")


def test_requirements_are_pinned_and_hashed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(wanted: list[str]) -> set[str]:
        return {re.split(r"[<>=!~ ]", line, maxsplit=1)[0].lower() for line in wanted}

    for file, wanted in {
        "requirements.txt": names(project["dependencies"]),
        "requirements-dev.txt": names(
            project["dependencies"] + project["optional-dependencies"]["dev"]
        ),
    }.items():
        text = (ROOT / "packaging" / file).read_text()
        entries = re.split(
            r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip()
        )
        pinned = {re.match(r"([a-z0-9-]+)==[\w.]+", entry)[1] for entry in entries}  # type: ignore[index]
        assert pinned >= wanted, file
        assert all("--hash=sha256:" in entry for entry in entries), file


def test_the_manual_needs_nothing_of_pygments_that_the_built_file_lacks() -> None:
    program = (
        "import sys\nfrom cipherbox.cli.manual import manual_pages\n"
        "from cipherbox.cli.page_layout import laid_out\n"
        "for page in manual_pages().values(): laid_out(page)\n"
        "print(*(n for n in sys.modules if n.startswith('pygments.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    loaded = {name for name in done.stdout.split() if name.count(".") == 2}
    assert {name for name in loaded if name.rpartition(".")[2] != "_mapping"} == set()


def test_every_line_of_the_unit_is_explained() -> None:
    explained = False
    for line in (ROOT / "systemd" / "cipherbox.service").read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False
        else:
            assert explained, line


@pytest.mark.parametrize(
    "pattern",
    [
        r"\bTO" r"DO\b",
        r"\bFIX" r"ME\b",
        r"\bXX" r"X\b",
        r"NotImplemented" r"Error",
        r"pytest\.mark\." r"skip(?!if\((.+reason=|$))",
        r"pytest\." r"skip\((?!f?\"\w|$)",  # without a reason
        r"time\." r"sleep\(",
        r"(?i)https?://[a-z0-9.-]*py" r"pi",
        r"--index" r"-url",
        r"# fm" r"t: (skip|off)",
    ],
)
def test_what_is_not_in_the_project(pattern: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == []


# Private names of the package that tests still use, and what for; what is seen from outside is
# tested from outside.  Never add to it: give the package a public name, or test its behaviour.
PRIVATE = {
    # a crash, a refusal or a lie at one step in the middle of a call
    *("_transaction", "_insert", "_put", "_finish", "_publish", "_put_certificate"),
    *("_register", "_check_time", "_send", "_confirm", "_renew", "_consistency", "_proof", "_open"),
    *("_below", "_destroy"),
    # the rows behind an object, to age, damage or count them, and what it remembers
    *(
        "_db",
        "_fact",
        "_newest",
        "_rows",
        "_of",
        "_spent",
        "_held",
        "_unproven",
        "_note_number",
        "_put_fact",
    ),
    *("_pending", "_cache", "_made", "_due", "_waited", "_in_flight", "_out"),
    *("_buckets", "_arriving", "_touched", "_ids"),
    *("_files", "_deadline_s", "_aead", "_post"),
    # PostgreSQL's connections, to cut them
    *("_writer", "_connection", "_sock"),
    # the two ends of a pipe
    *("_opened", "_failure", "_peer_aborted"),
    # constants and functions of one module, and the simulation's chance
    *("_ENTRY", "_note", "_bell"),
    *("_replace_client", "_set_watermark", "_holds", "_pieces", "_left", "_random"),
    # one choice among connections
    *("_current", "_ready"),
}
OF_RECORDS = {"_replace", "_asdict", "_fields", "_make"}  # public, of named tuples


def private_names(path: Path, own: set[str]) -> set[str]:
    """Return the private names of the package that a file of the tests uses: as attributes of
    anything but ``self``, imported, or patched by their name.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cipherbox"):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr")):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant)}  # type: ignore[misc]
    return {name for name in found if re.match(r"_[A-Za-z]", str(name))} & own


def test_private_names_that_tests_use_become_fewer() -> None:
    own = set[str]()
    for path in (ROOT / "cipherbox").rglob("*.py"):
        own |= set(re.findall(r"\b_[A-Za-z]\w*", path.read_text("utf-8")))
    used = set().union(*(private_names(p, own) for p in (ROOT / "tests").rglob("*.py")))
    assert used - OF_RECORDS - PRIVATE == set()
    assert PRIVATE - used == set(), "no longer used: take it off the list"


def test_no_path_of_a_machine() -> None:
    """A file of the project must not depend on where one developer keeps it."""
    above = ROOT.parent
    if above == Path("/"):
        pytest.skip("the project stands at the root, which every path begins with")
    assert [
        str(path)
        for path, text in texts()
        if f"{above}/" in text or str(Path.home() / "x")[:-1] in text
    ] == []


def test_the_license_and_version_are_stated() -> None:
    import cipherbox

    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert f"## {cipherbox.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_begins_with_two_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert re.search(r"^make demo\b", readme, re.MULTILINE)
    assert re.search(r"^make test\b", readme, re.MULTILINE)
