"""Suggest the client id that was meant by an unknown one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from cipherbox.errors import CipherBoxError, NotFound, UnknownRecipient


class ClientList(Protocol):
    """What a suggestion needs of a client."""

    async def list(self, what: str, name: str = "") -> list[dict[str, Any]]: ...


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the id that ``name`` may have meant, or nothing if none is similar. Ids are unique
    regardless of case.
    """
    import difflib

    by_case = {one.casefold(): one for one in known}
    wanted = name.casefold()
    found = (
        [wanted]
        if wanted in by_case
        else difflib.get_close_matches(wanted, by_case, n=1, cutoff=0.75)
    )
    return by_case[found[0]] if found else ""


async def with_suggestion(
    client: ClientList, error: CipherBoxError, names: Sequence[str]
) -> CipherBoxError:
    """Return the error, with a suggestion if HQ does not know these ids but knows similar ones."""
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
