"""attrs classes that are completed at first use behave like those of attrs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs
import pytest

from cipherbox.classes import define, frozen


def incomplete(cls: type) -> bool:
    return "__attrs_attrs__" not in vars(cls) or not isinstance(vars(cls)["__attrs_attrs__"], tuple)


def test_the_first_instance_completes_the_class() -> None:
    @frozen
    class Point:
        x: int
        y: int = 2

    assert incomplete(Point)
    assert repr(Point(1)).endswith("Point(x=1, y=2)")
    assert not incomplete(Point)
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert hash(Point(1)) == hash(Point(1, 2))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Point(1).x = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]


def test_options_and_what_runs_after_init() -> None:
    @define(eq=False)
    class Row:
        items: list[int] = attrs.field(factory=list, repr=False)
        size: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            self.size = len(self.items)

    assert Row([1, 2]).size == 2
    assert Row() != Row()
    row = Row()
    row.items = [1]
    assert "items" not in repr(row)


def test_fields_are_known_before_the_first_instance() -> None:
    @frozen
    class Settings:
        pause_s: float = 1.0

    assert [field.name for field in attrs.fields(Settings)] == ["pause_s"]
    assert attrs.evolve(Settings(), pause_s=2.0).pause_s == 2.0
    assert attrs.asdict(Settings()) == {"pause_s": 1.0}


def test_a_subclass_completes_its_bases_first() -> None:
    @frozen
    class Base:
        x: int

    @frozen
    class Sub(Base):
        y: int

    class Plain(Base):
        pass

    assert repr(Sub(1, 2)).endswith("Sub(x=1, y=2)")
    assert not incomplete(Base)
    assert Plain(1).x == 1
    match Sub(3, 4):
        case Sub(x, y):
            assert (x, y) == (3, 4)


def test_a_plain_subclass_may_be_used_first() -> None:
    @define
    class Base:
        x: int

    class Plain(Base):
        def __init__(self) -> None:
            super().__init__(7)

    assert [field.name for field in attrs.fields(Plain)] == ["x"]
    assert Plain().x == 7


def test_an_init_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="Own must not write an __init__"):

        @define
        class Own:
            def __init__(self) -> None:
                pass


def in_threads(cls: Callable[[int], object]) -> list[object]:
    """Make one instance in each of four threads at the same time."""
    start, made = threading.Barrier(4), list[object]()

    def make() -> None:
        start.wait()
        made.append(cls(1))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_threads_may_use_it_first_at_the_same_time() -> None:
    for _ in range(20):

        @frozen
        class Point:
            x: int

        assert in_threads(Point) == [Point(1)] * 4
