"""Background tasks beside a `with` block, such that errors stay what they were.

A trio nursery wraps whatever leaves it into an exception group.  A user of this library who writes
``except NotFound`` must not have to know of the tasks behind the scene.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cipherbox.concurrency import ours_alone


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled when the block ends.  An error of the block leaves it alone, not
    in a group, and so does an error of ours that ended a task.
    """
    failure: BaseException | None = None
    with ours_alone():
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                nursery.cancel_scope.cancel()
                raise
            except BaseException as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
