"""Package maps: each package's docstring ends with its modules and the first sentence of each.

`make generate` writes them; `tests/test_layers.py` compares.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "cipherbox"
HEADING = "Map, written by `make generate`:"
WIDTH = 100


def packages() -> list[Path]:
    """Return the `__init__.py` of every package."""
    return sorted(PACKAGE.rglob("__init__.py"))


def first_sentence(file: Path) -> str:
    """Return the first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) ", paragraph, maxsplit=1)[0]


def entries(package: Path, order: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the name and first sentence of each module and subpackage: those in ``order`` first,
    the others by name.
    """
    found = {}
    for path in package.parent.iterdir():
        if path.suffix == ".py" and path != package:
            found[path.stem] = (path.stem, first_sentence(path))
        elif (path / "__init__.py").is_file():
            found[path.name] = (f"{path.name}/", first_sentence(path / "__init__.py"))
    placed = [name for name in order if name in found]
    for name in placed + sorted(found.keys() - set(placed)):
        yield found[name]


def mapped(package: Path, order: Sequence[str] = ()) -> str:
    """Return the source of a package's `__init__.py` with its map up to date."""
    source = package.read_text("utf-8")
    rows = list(entries(package, order))
    if not rows:
        return source
    tree = ast.parse(source)
    docstring = ast.get_docstring(tree)
    assert docstring, f"{package} has no docstring"
    text = docstring.partition(HEADING)[0].rstrip()
    column = 4 + 2 + max(len(name) for name, _ in rows)
    lines = []
    for name, sentence in rows:
        lines += textwrap.wrap(
            sentence,
            WIDTH,
            initial_indent=f"    {name:<{column - 4}}",
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )
    made = "\n".join(['"""' + text, "", HEADING, "", *lines, '"""'])
    assert "\\" not in made, f"{package}: a backslash in a map"
    rest = source.splitlines(keepends=True)[tree.body[0].end_lineno :]
    return made + "\n" + "".join(rest)


def write(order: Sequence[str]) -> None:
    """Write every map; ``order`` is that of the layers, from the ground up."""
    for package in packages():
        package.write_text(
            mapped(package, order if package.parent == PACKAGE else ()), encoding="utf-8"
        )
