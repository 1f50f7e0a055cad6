"""The rules of the house, read from the source: which layer may import which and what from
outside, no import cycles, the length of classes and functions, maps that are true.
"""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import maps

PACKAGE = Path(__file__).resolve().parent.parent / "cipherbox"

BASE = {"errors", "clock", "classes", "limits", "checks", "contact_lists", "readable", "spares"}
GROUND = BASE | {"concurrency", "portable", "config", "alerting", "pki", "net", "ops"}
# the web page's, which nothing but `apps/page` may import
PAGE_ONLY = {"hypercorn", "jinja2", "markdown_it", "markupsafe", "segno", "starlette"}
# layer -> (layers it may import besides itself, packages from outside the standard library)
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "clock": (set(), set()),
    "classes": (set(), {"attrs"}),
    "limits": ({"errors", "classes"}, set()),
    "checks": ({"errors"}, set()),
    "concurrency": ({"errors"}, {"trio"}),
    "contact_lists": ({"classes"}, {"attrs"}),
    "readable": (set(), set()),
    "spares": (set(), set()),
    "portable": (BASE, set()),
    "config": (BASE | {"portable"}, {"attrs"}),
    "alerting": (BASE | {"concurrency", "portable", "config"}, {"attrs", "orjson", "trio"}),
    "pki": (BASE | {"portable"}, {"attrs", "cryptography", "orjson"}),
    "net": (
        BASE | {"concurrency", "portable", "config", "pki"},
        {"attrs", "cryptography", "h11", "python_socks", "trio", "trio_websocket"},
    ),
    "ops": (BASE | {"portable", "config"}, {"orjson", "prometheus_client"}),
    "wire": (BASE, {"attrs"}),
    "envelope": (BASE | {"pki"}, {"attrs", "cryptography", "nacl"}),
    # portable for the key file's mode, pki for the certificate key that signs a bundle
    "sealing": (
        BASE | {"envelope", "portable", "pki"},
        {"attrs", "cryptography", "nacl", "orjson"},
    ),
    "broker": (BASE, {"attrs"}),
    "store": (BASE | {"broker", "portable"}, {"attrs", "orjson", "pg8000"}),
    "server": (
        GROUND | {"wire", "envelope", "broker", "store"},
        {"attrs", "trio", "cryptography", "orjson", "nacl"},
    ),
    "client": (
        (GROUND - {"ops"}) | {"wire", "envelope", "sealing"},
        {"attrs", "trio", "cryptography", "nacl", "orjson", "zstandard", "zxcvbn"},
    ),
    "apps": (
        BASE | {"concurrency", "portable", "config", "pki", "envelope", "sealing", "client"},
        {"attrs", "trio", "orjson", *PAGE_ONLY},
    ),
    # the built program as processes, for demo, prove and bench
    "harness": (
        BASE | {"concurrency", "portable", "ops", "store", "client"},
        {"attrs", "trio", "orjson"},
    ),
}
LAYERS = [*TABLE, "cli", "__main__"]  # from the ground up, as in the map of the whole package
CLI_ONLY = {"click", "rich"}
PURE = {"wire", "broker", "envelope"}
IMPURE = {
    "trio",
    "socket",
    "ssl",
    "time",
    "random",
    "asyncio",
    "threading",
    "sqlite3",
    "subprocess",
}
UNIX_OR_WINDOWS = {"fcntl", "msvcrt", "signal", "pwd", "grp", "winreg", "resource"}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a file; each is parsed once for all rules."""
    return ast.parse(path.read_text("utf-8"), str(path))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return [*ast.walk(tree_of(path))]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "manual":  # programs that are printed, and stand on the public API alone
            yield parts[0], path


def imported(path: Path, typing: bool = False) -> Iterator[tuple[str, int]]:
    """Yield every module a file imports, anywhere in it; what only the type checker reads counts
    with ``typing``.
    """
    skipped = {
        id(inner)
        for node in nodes_of(path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        if typing or id(node) not in skipped:
            yield from ((name, node.lineno) for name in names)


def layer_of(name: str) -> str | None:
    parts = name.split(".")
    return (
        parts[1]
        if parts[0] == "cipherbox" and len(parts) > 1 and not parts[1].startswith("__")
        else None
    )


def test_every_module_has_its_layer() -> None:
    found = {name for name, _ in modules()}
    assert found <= {*LAYERS, "__init__"}


def test_the_table_stands_from_the_ground_up() -> None:
    for place, (layer, (inside, _)) in enumerate(TABLE.items()):
        assert inside <= set(LAYERS[:place]), layer


def test_the_table_holds() -> None:
    wrong = []
    for layer, path in modules():
        if layer not in TABLE:
            continue
        inside, outside = TABLE[layer]
        for name, line in imported(path):
            top = name.split(".")[0]
            where = f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
            if top == "cipherbox":
                other = layer_of(name)
                if other and other != layer and other not in inside:
                    wrong.append(where)
            elif top not in sys.stdlib_module_names and top not in outside:
                wrong.append(where)
    assert wrong == []


# What stands at the top of an end: the whole of it is made there, so nothing below may ask for it.
TOPS = {"client.client": {"client.blocking_thread", "client"}, "server.app": set[str]()}


def import_graph() -> dict[str, set[str]]:
    """Return what each module imports of the package, `TYPE_CHECKING` and late imports included."""
    files = {}
    for _, path in modules():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for name, _ in imported(path, typing=True):
            target = name.removeprefix("cipherbox.")
            while target and target not in files:
                target = target.rpartition(".")[0]
            if name.startswith("cipherbox.") and target and target != module:
                graph[module].add(target)
    return graph


def in_cycles(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return each module that imports itself by way of others, with the next modules on the way."""
    reach: dict[str, set[str]] = {}
    for module in graph:
        seen, waiting = set[str](), [*graph[module]]
        while waiting:
            if (here := waiting.pop()) not in seen:
                seen.add(here)
                waiting += graph[here]
        reach[module] = seen
    return {
        module: {other for other in graph[module] if module in reach[other]}
        for module in graph
        if module in reach[module]
    }


def test_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set[str]()}
    assert in_cycles(graph) == {"a": {"b"}, "b": {"c"}, "c": {"a"}}


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert in_cycles(import_graph()) == {}


def test_nothing_below_imports_the_top_of_an_end() -> None:
    wrong = set()
    for module, others in import_graph().items():
        for top, may in TOPS.items():
            if top in others and module.split(".")[0] == top.split(".")[0] and module not in may:
                wrong.add(module)
    assert wrong == set()


def test_sqlite_and_postgresql_have_one_place_each() -> None:
    for driver, layers in {"sqlite3": {"store", "client", "cli"}, "pg8000": {"store"}}.items():
        users = [
            path
            for layer, path in modules()
            if any(n.split(".")[0] == driver for n, _ in imported(path))
        ]
        assert {path.relative_to(PACKAGE).parts[0] for path in users} <= layers


def test_pure_layers_do_no_io() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for layer, path in modules()
        if layer in PURE
        for name, line in imported(path)
        if name.split(".")[0] in IMPURE
    ]
    assert wrong == []


def test_only_portable_knows_the_system() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for layer, path in modules()
        # which runs before the package can be imported
        if layer != "portable" and path.name != "unpack.py"
        for name, line in imported(path)
        if name.split(".")[0] in UNIX_OR_WINDOWS
    ]
    assert wrong == []


def test_only_the_page_knows_the_web() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for _, path in modules()
        if PACKAGE / "apps" / "page" not in path.parents
        for name, line in imported(path)
        if name.split(".")[0] in PAGE_ONLY
    ]
    assert wrong == []


def test_only_the_command_line_prints() -> None:
    wrong = []
    for layer, path in modules():
        if layer in ("cli", "__main__"):
            continue
        for name, line in imported(path):
            if name.split(".")[0] in CLI_ONLY:
                wrong.append(f"{path}:{line} imports {name}")
        for node in nodes_of(path):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("print", "input")
            ):
                wrong.append(f"{path}:{node.lineno} calls {node.func.id}")
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "trio.run"
                and path.name != "blocking_thread.py"
            ):
                wrong.append(f"{path}:{node.lineno} calls trio.run")
    assert [w for w in wrong if "document.py" not in w] == []


# `pki` names what its callers use of its files: `from cipherbox import pki` is read everywhere.
PACKAGES = [p for _, p in modules() if p.name == "__init__.py" and p.parent.name != "pki"]


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: p.parent.name)
def test_packages_import_nothing_and_have_a_map(path: Path) -> None:
    assert [
        name for name, _ in imported(path) if name.split(".")[0] not in sys.stdlib_module_names
    ] == []
    assert ast.get_docstring(tree_of(path))


@pytest.mark.parametrize("path", maps.packages(), ids=lambda p: p.parent.name)
def test_maps_are_true(path: Path) -> None:
    order = LAYERS if path.parent == PACKAGE else ()
    assert maps.mapped(path, order) == path.read_text("utf-8"), "run: make generate"


# Plain attrs classes, compiled whether a start uses them or not: HQ's, of which it holds many, and
# two whose parameters `checked` reads.
SLOTTED = {"broker", "store", "server"}
CHECKED = {"SecureSession", "SessionSettings"}


def test_classes_of_a_client_are_completed_at_first_use() -> None:
    found = set()
    for layer, path in modules():
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef) and layer not in SLOTTED:
                made_by = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
                found |= {node.name} if made_by & {"attrs.define", "attrs.frozen"} else set()
    assert found == CHECKED


MOST_OF_A_CLASS, MOST_OF_A_FUNCTION = 350, 60


def test_classes_and_functions_are_split_by_idea() -> None:
    long = set()
    for _, path in modules():
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                most = MOST_OF_A_CLASS if isinstance(node, ast.ClassDef) else MOST_OF_A_FUNCTION
                if (node.end_lineno or 0) - node.lineno + 1 > most:
                    long.add(f"{path.relative_to(PACKAGE)} {node.name}")
    assert long == set()


def test_the_server_cannot_open_anything() -> None:
    """Not even indirectly: loading all of the server loads nothing of `sealing`."""
    program = (
        "import sys, pkgutil, importlib, cipherbox.server as server\nfor m in "
        "pkgutil.walk_packages(server.__path__, 'cipherbox.server.'): "
        "importlib.import_module(m.name)\nimport cipherbox.cli.serve, cipherbox.cli.main, "
        "cipherbox.cli.output\nprint([m for m in sys.modules if "
        "m.startswith('cipherbox.sealing') or m.startswith('cipherbox.client')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "[]"
