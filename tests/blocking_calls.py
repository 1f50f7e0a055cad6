"""Generate the calls of the blocking client from those of `Client`: same names, same types.

`make generate` writes `cipherbox/client/blocking_calls.py`; a test compares.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cipherbox.client.client import Client

PACKAGE = Path(__file__).resolve().parent.parent
FILE = PACKAGE / "cipherbox" / "client" / "blocking_calls.py"
CONTEXTS = {"Publisher": "BlockingPublisher", "Consumer": "BlockingConsumer"}
# its methods run on trio; programs that need the outbox itself use `Client`
LEFT_OUT = {"outbox"}
Method = ast.FunctionDef | ast.AsyncFunctionDef
HEAD = '''"""The calls of the blocking client; written by `make generate` from those of `Client`."""

from __future__ import annotations

{imports}


class BlockingCalls:
    """Mixed into `BlockingClient`."""

    _thread: ClientThread
'''


def public_methods() -> Iterator[tuple[str, Method]]:
    """Yield each public method of Client with the module that defines it, `list` last: below it
    the name no longer means the builtin.
    """
    found: dict[str, tuple[str, Method]] = {}
    for owner in Client.__mro__[:-1]:
        source = Path(str(importlib.import_module(owner.__module__).__file__))
        for node in ast.parse(source.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
                for member in node.body:
                    if isinstance(member, Method) and not member.name.startswith("_"):
                        found.setdefault(member.name, (owner.__module__, member))
    for name in LEFT_OUT:
        del found[name]
    yield from sorted(found.values(), key=lambda one: (one[1].name == "list", one[1].name))


def generated() -> str:
    """Return the module's text."""
    imports = {"from cipherbox.client.blocking_thread import ClientThread"}
    parts = []
    for module, method in public_methods():
        parts.append(_wrapper(method, imports))
        imports |= _imports(module, method)
    text = HEAD.format(imports="\n".join(sorted(imports))) + "\n" + "\n".join(parts)
    for command in (["check", "--fix", "--quiet", "--select", "I,F401"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(FILE), "-"],
            input=text,
            capture_output=True,
            text=True,
            cwd=PACKAGE,
            check=True,
            timeout=300,
        ).stdout
    return text


def write() -> None:
    """Write the module."""
    FILE.write_text(generated(), "utf-8")


def _wrapper(method: Method, imports: set[str]) -> str:
    decorators = {ast.unparse(one) for one in method.decorator_list}
    returns, name = ast.unparse(method.returns or ast.Constant(None)), method.name
    if "property" in decorators:
        return f"""    @property
    def {name}(self) -> {returns}:
        return self._thread.client.{name}
"""
    arguments = method.args
    passed = [one.arg for one in arguments.args[1:]]
    passed += [f"{one.arg}={one.arg}" for one in arguments.kwonlyargs]
    passed += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    function = f"self._thread.client.{name}"
    call = f"{function}({', '.join(passed)})"
    if "asynccontextmanager" in decorators:
        kind = CONTEXTS[returns.removeprefix("AsyncIterator[").removesuffix("]")]
        imports.add(f"from cipherbox.client.blocking_contexts import {kind}")
        returns, body = kind, f"return {kind}(self._thread, {call})"
    else:
        assert isinstance(method, ast.AsyncFunctionDef), f"{name} is neither a call nor a property"
        work = f"lambda: {call}" if passed else function
        body = f"{'' if returns == 'None' else 'return '}self._thread.call({work})"
    return f'''    def {name}({ast.unparse(arguments)}) -> {returns}:
        """As `Client.{name}`."""
        {body}
'''


def _imports(module: str, method: Method) -> set[str]:
    """Return the imports that the signature needs, as the defining module has them."""
    used = {
        node.id
        for part in (method.args, method.returns)
        if part is not None
        for node in ast.walk(part)
        if isinstance(node, ast.Name)
    }
    source = Path(str(importlib.import_module(module).__file__)).read_text("utf-8")
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) in used:
                    one = ast.unparse(alias)
                    start = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                    found.add(f"{start}import {one}")
        for name in _defined(node):
            if name in used:
                found.add(f"from {module} import {name}")
    return found


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [one.id for one in node.targets if isinstance(one, ast.Name)]
    return []
