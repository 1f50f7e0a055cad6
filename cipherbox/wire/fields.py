"""The building blocks of the table of frames: field makers, and the decorators that turn a class
into a frame.

Each maker defines how one field is encoded.  A class under `@frame` or `@record` becomes a plain
attrs class whose encoder and decoder are compiled from its fields when one is first sent or read; a
run of fields of fixed size is one `struct`.  Integers are big-endian, text is UTF-8, and a count is
checked against the remaining bytes before anything is allocated for it, so a frame never costs more
memory than its bytes justify.
"""

from __future__ import annotations

import functools
import inspect
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import attrs

from cipherbox.classes import define
from cipherbox.errors import ProtocolError

T = TypeVar("T")
Put = Callable[[Any, "list[bytes]"], None]
Get = Callable[[bytes, int], "tuple[Any, int]"]


class Kind(NamedTuple):
    """One encoding of a field: `code` for `struct` if its size is fixed, else the two functions."""

    name: str
    code: str
    put: Put
    get: Get
    least: int  # the fewest bytes a value takes; bounds the count of a listing
    item: Any = None  # of a listing: a Kind or a record class

    @property
    def title(self) -> str:
        """Return its name in the manual."""
        if self.item is None:
            return self.name
        inner = self.item.name if isinstance(self.item, Kind) else self.item.__name__
        return f"{self.name} of {inner}"


class FieldSpec(NamedTuple):
    """A field of a frame or a record: name, kind, and one line of documentation."""

    name: str
    kind: Kind
    doc: str
    later: Any = None  # of a field added later: its value when a frame ends before it


class FrameSpec(NamedTuple):
    """A row of the table of frames."""

    kind: int
    sender: str  # client, server, both, anonymous, admin
    answer: str | None
    cls: type

    @property
    def name(self) -> str:
        """Return its name in the manual: ACK_CONFIRMED."""
        name = self.cls.__name__
        return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()

    @property
    def doc(self) -> str:
        return inspect.cleandoc(self.cls.__doc__ or "")

    @property
    def fields(self) -> tuple[FieldSpec, ...]:
        return specs_of(self.cls)


TABLE: dict[int, FrameSpec] = {}
RECORDS: dict[str, type] = {}
_KIND_OF: dict[type, int] = {}


def _short(need: str) -> ProtocolError:
    return ProtocolError(f"the frame ends inside {need}")


def _fixed(name: str, code: str) -> Kind:
    layout = struct.Struct(">" + code)
    size = layout.size

    def put(value: Any, out: list[bytes]) -> None:
        out.append(layout.pack(value))

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        if at + size > len(buf):
            raise _short(f"a {name}")
        return layout.unpack_from(buf, at)[0], at + size

    return Kind(name, code, put, get, size)


def _flag() -> Kind:
    def put(value: Any, out: list[bytes]) -> None:
        out.append(b"\x01" if value else b"\x00")

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        if at >= len(buf):
            raise _short("a flag")
        if buf[at] > 1:
            raise ProtocolError(f"invalid flag {buf[at]}: must be 0 or 1")
        return buf[at] == 1, at + 1

    return Kind("flag", "", put, get, 1)


def _counted(name: str, code: str, *, text: bool) -> Kind:
    length = struct.Struct(">" + code)
    size = length.size
    most = 256**size - 1

    def put(value: Any, out: list[bytes]) -> None:
        raw = value.encode() if text else value
        if len(raw) > most:
            raise ProtocolError(f"a {name} of {len(raw)} bytes is too long: at most {most}")
        out.append(length.pack(len(raw)))
        out.append(raw)

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        start = at + size
        if start > len(buf):
            raise _short(f"a {name}")
        end = start + length.unpack_from(buf, at)[0]
        if end > len(buf):
            raise _short(f"a {name}")
        raw = bytes(buf[start:end])
        if not text:
            return raw, end
        try:
            return raw.decode(), end
        except UnicodeDecodeError:
            raise ProtocolError(f"a {name} is not valid UTF-8") from None

    return Kind(name, "", put, get, size)


def _rest() -> Kind:
    def put(value: Any, out: list[bytes]) -> None:
        out.append(value)

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        return bytes(buf[at:]), len(buf)

    return Kind("rest", "", put, get, 0)


_U8, _U16, _U32, _U64 = (
    _fixed("u8", "B"),
    _fixed("u16", "H"),
    _fixed("u32", "I"),
    _fixed("u64", "Q"),
)
_ID16 = _fixed("id16", "16s")
_FLAG, _REST = _flag(), _rest()
_TEXT8, _TEXT16 = _counted("text8", "B", text=True), _counted("text16", "H", text=True)
_BLOB = _counted("blob", "I", text=False)
_COUNT = struct.Struct(">I")


def _listing(item: Kind | type) -> Kind:
    @functools.cache
    def of_item() -> tuple[Put, Get, int]:
        return _functions(item)

    def put(value: Any, out: list[bytes]) -> None:
        put_item, _, _ = of_item()
        out.append(_COUNT.pack(len(value)))
        for one in value:
            put_item(one, out)

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        if at + 4 > len(buf):
            raise _short("a listing")
        _, get_item, least = of_item()
        count = _COUNT.unpack_from(buf, at)[0]
        at += 4
        if count * max(1, least) > len(buf) - at:
            raise ProtocolError(f"a listing announces {count} items in {len(buf) - at} bytes")
        items = []
        for _ in range(count):
            value, at = get_item(buf, at)
            items.append(value)
        return items, at

    return Kind("listing", "", put, get, 4, item)


def _functions(item: Kind | type) -> tuple[Put, Get, int]:
    if isinstance(item, Kind):
        return item.put, item.get, item.least
    fields = specs_of(item)
    return encoder(fields), decoder(item, fields), sum(f.kind.least for f in fields)


def _maker(kind: Kind) -> Callable[..., Any]:
    def make(doc: str, *, default: Any = None) -> Any:
        """Return a field; ``default`` marks one added later, and is its value when a frame ends
        before it.
        """
        metadata = {"kind": kind, "doc": doc, "later": default}
        return (
            attrs.field(metadata=metadata)
            if default is None
            else attrs.field(default=default, metadata=metadata)
        )

    return make


u8, u16, u32, u64 = _maker(_U8), _maker(_U16), _maker(_U32), _maker(_U64)
id16, flag, rest = _maker(_ID16), _maker(_FLAG), _maker(_REST)
text8, text16, blob = _maker(_TEXT8), _maker(_TEXT16), _maker(_BLOB)
_ITEM_KINDS: dict[Any, Kind] = {text8: _TEXT8, text16: _TEXT16, blob: _BLOB, u64: _U64, u32: _U32}


def listing(item: Any, doc: str, *, later: bool = False) -> Any:
    """Return a field of a u32 count and that many items, each of another maker or a record class;
    ``later`` marks a field added later, which may be missing.
    """
    metadata = {"kind": _listing(_ITEM_KINDS.get(item, item)), "doc": doc}
    if later:
        return attrs.field(factory=list, metadata=metadata | {"later": ()})
    return attrs.field(metadata=metadata)


def encoder(fields: tuple[FieldSpec, ...]) -> Put:
    """Return a function that appends the bytes of all fields of an object."""
    steps: list[Put] = []
    run: list[FieldSpec] = []

    def close_run() -> None:
        if not run:
            return
        layout = struct.Struct(">" + "".join(f.kind.code for f in run))
        names = tuple(f.name for f in run)
        run.clear()

        def put_run(value: Any, out: list[bytes]) -> None:
            try:
                out.append(layout.pack(*[getattr(value, name) for name in names]))
            except struct.error as error:
                raise ProtocolError(
                    f"{type(value).__name__}: number out of range: {error}"
                ) from None

        steps.append(put_run)

    for spec in fields:
        if spec.kind.code:
            run.append(spec)
            continue
        close_run()

        def put_one(
            value: Any, out: list[bytes], name: str = spec.name, put: Put = spec.kind.put
        ) -> None:
            put(getattr(value, name), out)

        steps.append(put_one)
    close_run()

    def put(value: Any, out: list[bytes]) -> None:
        for step in steps:
            step(value, out)

    return put


def decoder(cls: type, fields: tuple[FieldSpec, ...]) -> Get:
    """Return a function that reads all fields and makes the object; it ignores what follows."""
    steps: list[tuple[struct.Struct | None, Get | None]] = []
    codes = ""
    for spec in (*fields, None):
        if spec is not None and spec.kind.code and spec.later is None:
            codes += spec.kind.code
            continue
        if codes:
            steps.append((struct.Struct(">" + codes), None))
            codes = ""
        if spec is not None:
            steps.append((None, spec.kind.get if spec.later is None else _or_default(spec)))

    def get(buf: bytes, at: int) -> tuple[Any, int]:
        values: list[Any] = []
        for layout, one in steps:
            if layout is not None:
                if at + layout.size > len(buf):
                    raise _short(cls.__name__)
                values.extend(layout.unpack_from(buf, at))
                at += layout.size
            elif one is not None:
                value, at = one(buf, at)
                values.append(value)
        return cls(*values), at

    return get


def _or_default(spec: FieldSpec) -> Get:
    def get(buf: bytes, at: int) -> tuple[Any, int]:
        return (
            (list(spec.later) if spec.later == () else spec.later, at)
            if at >= len(buf)
            else spec.kind.get(buf, at)
        )

    return get


@functools.cache
def specs_of(cls: type) -> tuple[FieldSpec, ...]:
    """Return the fields of a frame or a record, in order."""
    return tuple(
        FieldSpec(a.name, a.metadata["kind"], a.metadata["doc"], a.metadata.get("later"))
        for a in attrs.fields(cls)
    )


@dataclass_transform(
    field_specifiers=(u8, u16, u32, u64, id16, flag, rest, text8, text16, blob, listing)
)
def record(cls: type[T]) -> type[T]:
    """Make a class a record, which frames contain."""
    made = define(cls)
    RECORDS[made.__name__] = made
    return made


@dataclass_transform(
    field_specifiers=(u8, u16, u32, u64, id16, flag, rest, text8, text16, blob, listing)
)
def frame(kind: int, sender: str, answer: str | None = None) -> Callable[[type[T]], type[T]]:
    """Make a class the frame of this kind, which ``sender`` may send and ``answer`` answers."""

    def decorate(cls: type[T]) -> type[T]:
        made = define(cls)
        if kind in TABLE:
            raise ValueError(f"frame kind 0x{kind:02x} is already {TABLE[kind].name}")
        TABLE[kind] = FrameSpec(kind, sender, answer, made)
        _KIND_OF[made] = kind
        return made

    return decorate


def kind_of(value: object) -> int:
    """Return the kind of a frame object."""
    return _KIND_OF[type(value)]
