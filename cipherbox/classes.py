"""attrs classes that are completed when they are first used: `define` and `frozen`, as in attrs.

attrs compiles the methods of a class when the class is defined, in 0.4 ms: a third of the CPU time
of a short command, which uses one class in five.  Here the class is left as it is written, with an
`__init__` that completes it with attrs and then runs the real one.  Rules:

1. Whatever needs attrs' work begins with an instance, made by `__init__`, or asks the class for
   `__attrs_attrs__`, as `attrs.fields` and subclasses do.  Both complete the class.
2. The class is completed in place, so it has no slots.  Classes of which HQ holds many, and those
   it makes for every message, are plain attrs classes with slots: `broker`, `store`, `server`.
3. A class below `define` or `frozen` writes no `__init__` of its own and is not `checked`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attrs import define, frozen
else:
    import functools

    import attrs

    _LOCK = threading.RLock()  # two threads may use a class for the first time

    class _Completes:
        """`__attrs_attrs__` of an incomplete class: reading it completes the class."""

        def __init__(self, complete: Any) -> None:
            self._complete = complete

        def __get__(self, instance: object, owner: Any) -> Any:
            self._complete()
            return owner.__attrs_attrs__

    def _later(finish: Any, cls: type | None = None, **options: Any) -> Any:
        if cls is None:
            return functools.partial(_later, finish, **options)
        if "__init__" in vars(cls):
            raise TypeError(f"{cls.__name__} must not write an __init__ of its own")

        def complete() -> None:
            with _LOCK:
                if vars(cls)["__init__"] is incomplete:
                    for base in cls.__mro__[1:]:
                        getattr(base, "__attrs_attrs__", None)  # bases first
                    finish(cls, slots=False, init=True, **options)

        def incomplete(self: Any, *args: Any, **kwargs: Any) -> None:
            complete()
            cls.__init__(self, *args, **kwargs)

        cls.__init__ = incomplete
        cls.__attrs_attrs__ = _Completes(complete)
        return cls

    define = functools.partial(_later, attrs.define)
    frozen = functools.partial(_later, attrs.frozen)

__all__ = ["define", "frozen"]
