"""What somebody may have meant who wrote a client id that nobody has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cipherbox.errors import CipherBoxError, NotFound, UnknownRecipient

if TYPE_CHECKING:
    from cipherbox.client.client import Client


def nearest(name: str, known: Iterable[str]) -> str:
    """The id that ``name`` may have meant; empty when none is near.  Ids are unique without
    regard to case.
    """
    by_case = {one.casefold(): one for one in known}
    wanted = name.casefold()
    found = (
        [wanted]
        if wanted in by_case
        else difflib.get_close_matches(wanted, by_case, n=1, cutoff=0.75)
    )
    return by_case[found[0]] if found else ""


async def with_suggestion(
    client: Client, error: CipherBoxError, names: Sequence[str]
) -> CipherBoxError:
    """The same error, and what may have been meant where HQ knows none of these ids but a
    similar one.
    """
    if not isinstance(error, NotFound | UnknownRecipient) or not names:
        return error
    try:
        known = [str(row["name"]) for row in await client.list("clients")]
    except CipherBoxError:
        return error
    meant = [near for name in names if name not in known and (near := nearest(name, known))]
    if not meant:
        return error
    return error.copy(remedy=f"did you mean {' and '.join(meant)}?")
