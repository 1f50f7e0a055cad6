"""The diagrams of the manual: Mermaid that a viewer takes, and no other layers and tasks than
the code has.
"""

import ast
import re
from pathlib import Path

import pytest

from cipherbox.cli.manual import manual_pages

from .test_layers import BASE, PACKAGE, imported, layer_of, modules

PAGES = manual_pages()
DIAGRAMS = [
    pytest.param(found[1], id=f"{page}-{number}")
    for page, text in sorted(PAGES.items())
    for number, found in enumerate(re.finditer(r"```mermaid\n(.*?)```", text, re.DOTALL))
]
# One line of each kind of diagram, as Mermaid's grammar has it; ids without spaces, labels where
# they may stand.
_NODE = r"[\w.]+(?:\[\([^\])]+\)\]|\[[^\]]+\])?"
_ARROW = r"(?:-->|<-->|-- [^->]+ -->|-->\|[^|]+\|)"
GRAMMAR = {
    "flowchart": rf"subgraph \w+ \[[^\]]+\]|end|{_NODE}(?: {_ARROW} {_NODE})*",
    "sequenceDiagram": (
        r"participant \w+(?: as .+)?|Note over \w+(?:,\w+)?: .+|loop .+|end|\w+(?:->>|-->>)\w+: "
        r".+"
    ),
    "stateDiagram-v2": r"(?:\[\*\]|\w+) --> (?:\[\*\]|\w+)(?:: .+)?",
}


@pytest.mark.parametrize("diagram", DIAGRAMS)
def test_a_diagram_parses(diagram: str) -> None:
    head, *lines = [line.strip() for line in diagram.strip().splitlines()]
    kind = head.split()[0]
    assert kind in GRAMMAR, head
    opened = 0
    for line in lines:
        assert re.fullmatch(GRAMMAR[kind], line), line
        assert not set(line) & {";", "#"}, line  # these end a statement, or begin an entity
        opened += line.startswith(("subgraph ", "loop ")) - (line == "end")
        assert opened >= 0, line
    assert opened == 0
    if kind == "sequenceDiagram":
        parties = {line.split()[1] for line in lines if line.startswith("participant ")}
        used = {
            party
            for line in lines
            for party in re.findall(r"^(\w+)-{1,2}>>(\w+):", line)
            for party in party
        }
        assert used == parties


def diagram_after(heading: str) -> list[str]:
    section = PAGES["architecture"].partition(f"## {heading}\n")[2]
    found = re.search(r"```mermaid\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return [line.strip() for line in found[1].splitlines()][1:]


def test_the_diagram_of_layers_is_what_the_code_imports() -> None:
    """Every import between layers, but for the two of everybody and those that follow from
    others.
    """
    graph: dict[str, set[str]] = {}
    for layer, path in modules():
        if not layer.startswith("__") and layer not in BASE:
            others = {layer_of(name) for name, _ in imported(path)} - {layer, None, *BASE}
            graph.setdefault(layer, set()).update(other for other in others if other)

    def below(layer: str) -> set[str]:
        return graph[layer].union(*map(below, graph[layer])) if graph[layer] else set()

    edges = {
        (layer, other)
        for layer, direct in graph.items()
        for other in direct
        if not any(other in below(between) for between in direct - {other})
    }
    drawn = {tuple(line.split(" --> ")) for line in diagram_after("Layers") if line}
    assert drawn == edges


def test_the_table_of_layers_has_each_once() -> None:
    table = PAGES["architecture"].partition("| layer | what | knows |\n")[2].partition("\n\n")[0]
    named = [
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(named) == sorted({layer for layer, _ in modules()} - {"__init__", "__main__"})


def test_the_tasks_of_the_diagram_are_started() -> None:
    started = set()
    for file in ("app.py", "connection/session.py"):
        for node in ast.walk(ast.parse(Path(PACKAGE, "server", file).read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".start_soon"):
                started.add(ast.unparse(node.args[0]).removeprefix("hq.").removeprefix("self."))
    drawn = {
        line for line in diagram_after("Connections and nurseries") if re.fullmatch(r"[\w.]+", line)
    } - {"end"}
    assert len(drawn) >= 10
    assert drawn <= started
