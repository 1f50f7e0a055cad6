"""The changes that `make mutate` tries: one operator, constant, condition, argument or statement.

A change replaces one piece of a function's text and never adds or removes a line, so that what a
test reaches is known by line numbers.  Not changed: annotations, defaults and decorators (they run
on import), docstrings, assertions, and what is passed to an exception (its text).
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

SWAPPED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "//"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "//"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: (r"\|", "&"),
    ast.BitXor: (r"\^", "&"),
}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
REMOVED = ast.Expr | ast.Assign | ast.AugAssign | ast.Raise | ast.Delete | ast.Continue | ast.Break


@functools.cache
def source(path: Path) -> bytes:
    """Return a file as it was when this run began, whoever edits it since."""
    return path.read_bytes()


@attrs.frozen
class Mutation:
    """One change of a file: ``old`` at byte ``start`` becomes ``new``."""

    path: Path
    function: str  # qualified, as in `__qualname__`
    line: int
    start: int
    old: str
    new: str
    text: str  # of the line, without indentation
    number: int  # counts equal changes of one line

    @property
    def change(self) -> str:
        """Return the change in a form that fits on a line."""
        old, new = (" ".join(part.split()) for part in (self.old, self.new))
        more = f" #{self.number + 1}" if self.number else ""
        return f"{old} -> {new or '(nothing)'}{more}"

    def mutated(self) -> bytes:
        """Return the file with the change."""
        raw = source(self.path)
        return raw[: self.start] + self.new.encode() + raw[self.start + len(self.old.encode()) :]


class _Finder:
    """Collects the changes of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = source(path)
        self._lines = self._raw.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._found: list[Mutation] = []

    def find(self) -> list[Mutation]:
        self._definitions(ast.parse(self._raw), "")
        return self._found

    def _definitions(self, parent: ast.AST, prefix: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                self._definitions(node, f"{prefix}{node.name}.")
            elif isinstance(node, FUNCTIONS):
                for statement in node.body:
                    self._visit(statement, f"{prefix}{node.name}")

    def _visit(self, node: ast.AST, function: str) -> None:
        if isinstance(node, ast.Assert | ast.JoinedStr | ast.arguments):
            return
        for start, end, new in self._changes(node):
            self._add(function, start, end, new)
        annotations = {"annotation", "returns", "decorator_list"}
        for name, value in ast.iter_fields(node):
            if name in annotations or (isinstance(node, ast.Raise) and name in ("exc", "cause")):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self._visit(child, function)

    def _add(self, function: str, start: int, end: int, new: str) -> None:
        old = self._raw[start:end].decode()
        if "\n" in old:  # no line moves
            more = "\n" * old.count("\n")
            new = f"({new}{more})" if new in ("True", "False", "None") else new + more
        line = self._raw.count(b"\n", 0, start) + 1
        text = self._lines[line - 1].decode().strip()
        same = sum((m.line, m.old, m.new) == (line, old, new) for m in self._found)
        self._found.append(Mutation(self._path, function, line, start, old, new, text, same))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        at = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        to = self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return at, to

    def _between(
        self, left: ast.AST, right: ast.AST, operator: ast.AST
    ) -> Iterator[tuple[int, int, str]]:
        if type(operator) not in SWAPPED:
            return
        pattern, new = SWAPPED[type(operator)]
        start, end = self._span(left)[1], self._span(right)[0]
        found = re.search(pattern, self._raw[start:end].decode())
        if found is not None:
            yield start + found.start(), start + found.end(), new

    def _changes(self, node: ast.AST) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.Compare():
                for left, right, operator in zip(
                    [node.left, *node.comparators], node.comparators, node.ops, strict=False
                ):
                    yield from self._between(left, right, operator)
            case ast.BoolOp():
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield from self._between(left, right, node.op)
            case ast.BinOp():
                yield from self._between(node.left, node.right, node.op)
            case ast.UnaryOp(op=ast.Not()):
                start = self._span(node)[0]
                yield start, start + len("not "), ""
            case ast.Constant():
                yield from self._constant(node)
            case ast.If() | ast.IfExp():
                yield (*self._span(node.test), "True")
                yield (*self._span(node.test), "False")
            case ast.While():
                yield (*self._span(node.test), "False")
            case ast.comprehension():
                for condition in node.ifs:
                    yield (*self._span(condition), "True")
            case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
                yield (*self._span(value), "None")
            case ast.Call():
                for keyword in node.keywords:
                    if keyword.arg is not None:
                        start, end = self._span(keyword)
                        comma = re.match(rb"\s*,[ ]?", self._raw[end:])
                        yield start, end + (comma.end() if comma else 0), ""
            case ast.AugAssign():
                yield from self._between(node.target, node.value, node.op)
        if isinstance(node, REMOVED) and not _is_needed(node):
            yield (*self._span(node), "pass")

    def _constant(self, node: ast.Constant) -> Iterator[tuple[int, int, str]]:
        match node.value:
            case bool():
                yield (*self._span(node), str(not node.value))
            case int():
                yield (*self._span(node), str(node.value + 1))
            case str() | bytes() if node.value:
                other = "XX" if isinstance(node.value, str) else b"XX"
                yield (*self._span(node), repr(other))


def _is_needed(node: ast.AST) -> bool:
    """Return whether removing a statement leaves a name unbound, or changes nothing."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return not all(isinstance(one, ast.Attribute | ast.Subscript) for one in node.targets)
    return False


def mutations_of(path: Path) -> list[Mutation]:
    """Return every change of one file."""
    return [one for one in _Finder(path).find() if not _is_docstring(one)]


def _is_docstring(one: Mutation) -> bool:
    return one.old.lstrip("rb").startswith('"""')
