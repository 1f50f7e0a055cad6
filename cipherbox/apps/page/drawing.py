"""Draw the manual's diagrams as SVG: the part of Mermaid's language that the manual uses.

Sequence diagrams are lanes with arrows, notes and loops in the order of their lines.  Flow and
state diagrams are boxes in ranks: an arrow leads to a later rank, except those that close a cycle.
A line that is not understood makes the diagram stay text (`drawn` returns nothing); a test draws
every diagram of the manual.
"""

from __future__ import annotations

import re
from html import escape
from typing import NamedTuple

_LANE, _HEAD, _STEP, _LINE = 200, 44, 22, 16
_BOX, _HIGH, _GAP = 170, 58, 34
_MOST_ACROSS = 4  # ranks beside each other; more go from top to bottom
_CHARS = 21  # of a line in a box
_ARROW = re.compile(r"(\w+)\s*(--?>>)\s*(\w+)\s*:\s*(.*)")
_NOTE = re.compile(r"Note over (\w+)(?:,\s*(\w+))?\s*:\s*(.*)")
_NODE = r"(\[\*\]|[\w.]+)(?:\[\(?(.*?)\)?\])?"
_EDGE = re.compile(
    rf"{_NODE}\s*(?:(<?-->)(?:\|(.*?)\|)?|--\s*(.*?)\s*-->)\s*{_NODE}(?:\s*:\s*(.*))?"
)


class Edge(NamedTuple):
    """An arrow of a flow or state diagram."""

    start: str
    end: str
    label: str
    both: bool


def drawn(source: str) -> str:
    """Return a diagram as SVG, or nothing if a line of it is not understood."""
    lines = [line.strip() for line in source.strip().splitlines() if line.strip()]
    kind = lines[0].split()
    if kind[0] == "sequenceDiagram":
        return _sequence(lines[1:])
    if kind[0] in ("flowchart", "stateDiagram-v2"):
        return _flow(lines[1:], across=kind[-1] == "LR")
    return ""


def wrapped(text: str, most: int) -> list[str]:
    """Return a text in lines of at most so many characters, longer words whole."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _svg(width: float, height: float, parts: list[str]) -> str:
    tip = (
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" class="tip"></path>'
        "</marker></defs>"
    )
    return (
        f'<svg class="diagram" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'aria-hidden="true">{tip}{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, lines: list[str], kind: str = "", anchor: str = "middle") -> str:
    spans = "".join(
        f'<tspan x="{x:.0f}" y="{y + _LINE * at:.0f}">{escape(line)}</tspan>'
        for at, line in enumerate(lines)
    )
    return f'<text class="{kind}" text-anchor="{anchor}">{spans}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" rx="6"></rect>'
    )


# -- sequences -------------------------------------------------------------------------------------


def _sequence(lines: list[str]) -> str:
    lanes: dict[str, float] = {}
    names: dict[str, str] = {}
    parts: list[str] = []
    loops: list[tuple[float, str]] = []
    y = float(_HEAD + 24)
    for line in lines:
        if line.startswith("participant "):
            lane, _, name = line.removeprefix("participant ").partition(" as ")
            lanes[lane] = _LANE * (len(lanes) + 0.5)
            names[lane] = name or lane
        elif line.startswith("loop "):
            loops.append((y, line.removeprefix("loop ")))
            y += _STEP + 8
        elif line == "end" and loops:
            top, text = loops.pop()
            parts.insert(0, _box(6, top, _LANE * len(lanes) - 12, y - top, "loop"))
            parts.append(_text(16, top + 17, [f"loop: {text}"], "label", "start"))
            y += 14
        elif found := _NOTE.fullmatch(line):
            first, last = lanes[found[1]], lanes[found[2] or found[1]]
            width = max(last - first + 150, 180)
            shown = wrapped(found[3], int(width / 7.5))
            height = _LINE * len(shown) + 12
            middle = (first + last) / 2
            parts.append(_box(middle - width / 2, y, width, height, "note-box"))
            parts.append(_text(middle, y + 18, shown))
            y += height + 14
        elif found := _ARROW.fullmatch(line):
            start, end = lanes[found[1]], lanes[found[3]]
            shown = wrapped(found[4], max(20, int(abs(end - start) / 7.5)))
            y += _LINE * len(shown)
            parts.append(_text((start + end) / 2, y - _LINE * (len(shown) - 1) - 5, shown))
            kind = "reply" if found[2] == "-->>" else ""
            parts.append(
                f'<path class="{kind}" d="M{start:.0f} {y:.0f}H{end:.0f}" marker-end="url(#end)">'
                "</path>"
            )
            y += _STEP - 4
        else:
            return ""
    heads = []
    for lane, x in lanes.items():
        heads.append(f'<path class="lane" d="M{x:.0f} {_HEAD}V{y:.0f}"></path>')
        heads.append(_box(x - 85, 4, 170, _HEAD - 8))
        heads.append(_text(x, _HEAD / 2 + 5, [names[lane]]))
    return _svg(_LANE * len(lanes), y + 8, [*heads, *parts])


# -- flows and states ------------------------------------------------------------------------------


def _flow(lines: list[str], *, across: bool) -> str:
    names: dict[str, str] = {}
    groups: dict[str, str] = {}
    edges: list[Edge] = []
    inside: list[str] = []
    for line in lines:
        if found := re.fullmatch(r"subgraph \w+ \[(.*)\]", line):
            inside.append(found[1])
        elif line == "end":
            inside.pop()
        elif found := _EDGE.fullmatch(line):
            start, end = found[1], found[6]
            if start == "[*]":
                start = "begin"
            if end == "[*]":
                end = "end"
            for node, name in ((start, found[2]), (end, found[7])):
                names[node] = name or names.get(node, node)
                if inside:
                    groups.setdefault(node, inside[-1])
            label = found[4] or found[5] or found[8] or ""
            edges.append(Edge(start, end, label, found[3] == "<-->"))
        elif re.fullmatch(r"[\w.]+", line):
            names.setdefault(line, line)
            groups.setdefault(line, inside[-1] if inside else "")
        else:
            return ""
    ranks = _ranks(list(names), edges)
    across = across and max(ranks.values()) < _MOST_ACROSS
    places = _places(ranks, edges, across=across)
    # an arrow that leads back bends around the boxes
    back = 50 if any(ranks[e.end] <= ranks[e.start] for e in edges) else 0
    width = max(x for x, _ in places.values()) + _BOX + 10 + (0 if across else back)
    height = max(y for _, y in places.values()) + _HIGH + 10 + (back if across else 0)
    parts = [_edge(edge, places, across=across) for edge in edges]
    for node, (x, y) in places.items():
        shown = wrapped(names[node], _CHARS)
        group = wrapped(groups.get(node, ""), 26)[:1]
        kind = "terminal" if node in ("begin", "end") else ""
        parts.append(_box(x, y, _BOX, _HIGH, kind))
        top = y + _HIGH / 2 + 5 - _LINE * (len(shown) - 1) / 2 - (7 if group != [""] else 0)
        parts.append(_text(x + _BOX / 2, top, shown))
        if group != [""]:
            parts.append(_text(x + _BOX / 2, y + _HIGH - 6, group, "label"))
    return _svg(width, height, parts)


def _ranks(nodes: list[str], edges: list[Edge]) -> dict[str, int]:
    """Return the rank of each box: the longest way to it, cycles left out."""
    later = {node: [e.end for e in edges if e.start == node and e.end != node] for node in nodes}
    order: list[str] = []  # each node after those it leads to
    state: dict[str, int] = {}
    forward: set[tuple[str, str]] = set()

    def visit(node: str) -> None:
        state[node] = 1
        for other in later[node]:
            if state.get(other) != 1:  # an arrow to a node on the way here closes a cycle
                forward.add((node, other))
                if other not in state:
                    visit(other)
        state[node] = 2
        order.append(node)

    for node in nodes:
        if node not in state:
            visit(node)
    rank = dict.fromkeys(nodes, 0)
    for node in reversed(order):
        for other in later[node]:
            if (node, other) in forward:
                rank[other] = max(rank[other], rank[node] + 1)
    return rank


def _places(
    rank: dict[str, int], edges: list[Edge], *, across: bool
) -> dict[str, tuple[float, float]]:
    """Return where each box is: near those that lead to it, in the order of the ranks."""
    ranks: dict[int, list[str]] = {}
    for node, number in rank.items():
        ranks.setdefault(number, []).append(node)
    widest = max(map(len, ranks.values()))
    along, beside = (_BOX + 90, _HIGH + _GAP) if across else (_HIGH + 56, _BOX + _GAP)
    at: dict[str, float] = {}
    for number in sorted(ranks):
        row = ranks[number]
        before = {n: [at[e.start] for e in edges if e.end == n and e.start in at] for n in row}
        row.sort(key=lambda n: sum(before[n]) / len(before[n]) if before[n] else widest / 2)
        for place, node in enumerate(row):
            at[node] = place + (widest - len(row)) / 2
    found: dict[str, tuple[float, float]] = {}
    for node, number in rank.items():
        x, y = number * along, at[node] * beside
        found[node] = (10 + x, 10 + y) if across else (10 + y, 10 + x)
    return found


def _edge(edge: Edge, places: dict[str, tuple[float, float]], *, across: bool) -> str:
    (x0, y0), (x1, y1) = places[edge.start], places[edge.end]
    back = (x1 <= x0) if across else (y1 <= y0)
    if across:
        ax, ay = (x0 + _BOX / 2, y0 + _HIGH) if back else (x0 + _BOX, y0 + _HIGH / 2)
        bx, by = (x1 + _BOX / 2, y1 + _HIGH) if back else (x1, y1 + _HIGH / 2)
    else:
        ax, ay = (x0 + _BOX, y0 + _HIGH / 2) if back else (x0 + _BOX / 2, y0 + _HIGH)
        bx, by = (x1 + _BOX, y1 + _HIGH / 2) if back else (x1 + _BOX / 2, y1)
    if back:
        bend = f"{ax} {ay + 50} {bx} {by + 50}" if across else f"{ax + 60} {ay} {bx + 60} {by}"
    elif across:
        bend = f"{(ax + bx) / 2} {ay} {(ax + bx) / 2} {by}"
    else:
        bend = f"{ax} {(ay + by) / 2} {bx} {(ay + by) / 2}"
    both = ' marker-start="url(#end)"' if edge.both else ""
    path = f'<path d="M{ax} {ay} C{bend} {bx} {by}" marker-end="url(#end)"{both}></path>'
    shift = 34 if back else 0
    middle = ((ax + bx) / 2 + (0 if across else shift), (ay + by) / 2 + (shift if across else 0))
    if not edge.label:
        return path
    return path + _text(middle[0], middle[1] - 4, wrapped(edge.label, 16), "label on-line")
