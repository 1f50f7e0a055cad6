"""Types at the door of the public API: a wrong one is named, with the parameter, before anything
else happens.

`checked` reads a function's annotations and refuses what they do not allow, in words: bytes for
text, text for bytes, None, a list for one, one for a list, a negative number.  No value is ever
repeated: it may be a secret.  Annotations of kinds that are not in the table below are left to the
code itself.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from cipherbox.errors import InvalidRequest

F = TypeVar("F")
Check = Callable[[object], str]  # empty: good; else what it has to be

_UNPACK = re.compile(r"Unpack\[(\w+)\]")


class WrongType(InvalidRequest, TypeError, code=InvalidRequest.code):
    """A parameter of the public API has a type that is not allowed."""


WrongType.name = InvalidRequest.name
_BYTES = (bytes, bytearray, memoryview)
_MANY = re.compile(
    r"(?:Sequence|Iterable|Collection|list|tuple|set|frozenset)\[([\w.]+)(?:, \.\.\.)?\]"
)


def checked(target: F) -> F:
    """The function, or the class with all its public methods, with its parameters checked."""
    if isinstance(target, type):
        for name, member in list(vars(target).items()):
            if name.startswith("_") and name != "__init__":
                continue
            if isinstance(member, classmethod):
                setattr(target, name, classmethod(checked(member.__func__)))
            elif inspect.isfunction(member) and not getattr(member, "unchecked", False):
                setattr(target, name, checked(member))
        return target
    wrapped: F = _wrapped(target)
    return wrapped


def unchecked(method: F) -> F:
    """A method on the hot path, which looks itself at what it is given."""
    method.unchecked = True  # type: ignore[attr-defined]
    return method


def _wrapped(function: Any) -> Any:
    @functools.cache
    def known() -> tuple[list[str], dict[str, Check], dict[str, object]]:
        """Return the names, checks and unpacked keywords; reading them takes longer than a call."""
        return [*inspect.signature(function).parameters], parameters(function), _unpacked(function)

    by_source: str = function.__qualname__.removesuffix(".__init__")

    def called(args: tuple[object, ...]) -> str:
        """Return what the user called: the class of the object, not the one that it inherits."""
        if known()[0][0] != "self" or not args:
            return by_source
        owner = type(args[0]).__name__
        return owner if by_source.count(".") == 0 else f"{owner}.{function.__name__}"

    def look(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        names, rules, unpacked = known()
        for name, value in zip(names, args, strict=False):
            if name in rules and (wanted := rules[name](value)):
                raise WrongType(f"{called(args)}: {name} must be {wanted}")
        for name, value in kwargs.items():
            if unpacked and name not in unpacked and name not in names:
                raise TypeError(f"{called(args)}() got an unexpected keyword argument {name!r}")
            if name in rules and (wanted := rules[name](value)):
                raise WrongType(f"{called(args)}: {name} must be {wanted}")

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            look(args, kwargs)
            return await function(*args, **kwargs)

        return asynchronous

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        look(args, kwargs)
        return function(*args, **kwargs)

    return plain


def parameters(function: Any) -> dict[str, Check]:
    """Return the check of each parameter whose annotation is known here."""
    checks = {name: check_of(annotation) for name, annotation in annotations_of(function).items()}
    return {name: check for name, check in checks.items() if check is not None}


def annotations_of(function: Any) -> dict[str, object]:
    """Return the annotation of each parameter, those of an unpacked `TypedDict` among them."""
    plain = {
        parameter.name: parameter.annotation
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return plain | _unpacked(function)


def _unpacked(function: Any) -> dict[str, object]:
    """Return the annotations of the keywords that ``**name: Unpack[...]`` stands for."""
    for parameter in inspect.signature(function).parameters.values():
        found = _UNPACK.fullmatch(str(parameter.annotation))
        if parameter.kind == parameter.VAR_KEYWORD and found:
            members = inspect.get_annotations(inspect.unwrap(function).__globals__[found[1]])
            return {n: getattr(one, "__forward_arg__", one) for n, one in members.items()}
    return {}


def check_of(annotation: object) -> Check | None:
    """The check of an annotation as it stands in the source, or None."""
    if not isinstance(annotation, str):
        return None
    kinds = _kinds(annotation)
    inner = {kind: _kinds(found[1]) for kind in kinds if (found := _MANY.fullmatch(kind))}
    if not all(kind in _TESTS or kind == "None" or kind in inner for kind in kinds):
        return None
    if not all(one in _TESTS for elements in inner.values() for one in elements):
        return None
    elements = [one for ones in inner.values() for one in ones]
    tests = [_TESTS[kind] for kind in kinds if kind in _TESTS]
    words = list(dict.fromkeys(_WORDS.get(kind, kind) for kind in kinds if kind in _TESTS))
    words += [f"a list of {' or '.join(_WORDS.get(one, one) for one in elements)}"] * bool(elements)
    words += ["None"] * ("None" in kinds)

    def check(value: object) -> str:
        if value is None:
            good = "None" in kinds
        else:
            good = any(test(value) for test in tests) or (bool(elements) and _all(value, elements))
        return "" if good else f"{' or '.join(words)}, {_instead(value, kinds, elements)}"

    return check


def _kinds(annotation: str) -> list[str]:
    """The members of a union, an alias taken apart."""
    return [
        one for kind in annotation.split("|") for one in _ALIASES.get(kind.strip(), [kind.strip()])
    ]


def _all(value: object, elements: list[str]) -> bool:
    """A list of what it must hold; what can be gone through once only is left to the code."""
    if isinstance(value, str | int | float | bytes | bytearray | memoryview):
        return False
    if isinstance(value, list | tuple | set | frozenset | dict):
        return all(any(_TESTS[kind](one) for kind in elements) for one in value)
    return hasattr(value, "__iter__")


def _instead(value: object, kinds: list[str], elements: list[str]) -> str:
    """What was given, by its type; of a number also which."""
    name = "None" if value is None else type(value).__name__
    if isinstance(value, list | tuple | set | frozenset):
        if not elements:
            return f"not a {name}: name one"
        bad = (one for one in value if not any(_TESTS[kind](one) for kind in elements))
        return f"not a {name} with {type(next(bad)).__name__} in it"
    if isinstance(value, str) and "bytes" in kinds:
        return "not str: use text.encode()"
    if isinstance(value, _BYTES) and "str" in kinds + elements:
        return f"not {name}: use data.decode()"
    if elements and any(_TESTS[kind](value) for kind in elements):
        return f"not one {name}: put it in a list"
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and {"int", "float"} & set(kinds)
    ):
        return f"not {value}"
    return f"not {name}"


def _number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _real(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and value >= 0
        and not math.isnan(value)
    )


def _uuid(value: object) -> bool:
    import uuid

    return isinstance(value, uuid.UUID)


def _path(value: object) -> bool:
    import os

    return isinstance(value, os.PathLike)


def _named(name: str) -> Callable[[object], bool]:
    """For classes of ours, which cannot be imported from here."""
    return lambda value: any(base.__name__ == name for base in type(value).__mro__)


_OURS = ("Home", "Message", "Delivery", "SecureContext", "KeyPair", "SessionSettings")
_ALIASES = {"Content": ["str", "bytes", "Message"], "Password": ["str", "bytes"]}
_TESTS: dict[str, Callable[[object], bool]] = {
    "str": lambda v: isinstance(v, str),
    "bytes": lambda v: isinstance(v, _BYTES),
    "int": _number,
    "float": _real,
    "bool": lambda v: isinstance(v, bool),
    "uuid.UUID": _uuid,
    "Path": _path,
    **{name: _named(name) for name in _OURS},
}
_WORDS = {
    "int": "a whole number from 0 on",
    "float": "a number from 0 on",
    "bool": "True or False",
    "uuid.UUID": "a UUID",
    "Path": "a path",
}
