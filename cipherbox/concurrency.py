"""Exception groups, which a trio nursery makes of whatever leaves it, of errors of ours alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cipherbox.errors import CipherBoxError


def first_of(group: BaseExceptionGroup[CipherBoxError]) -> CipherBoxError:
    """The first error of ours in a group that holds no other."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, CipherBoxError)
    return found


@contextmanager
def ours_alone() -> Iterator[None]:
    """A group of nothing but our own errors becomes the first of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(CipherBoxError)
        if ours is None or others is not None:
            raise
        raise first_of(ours) from None
