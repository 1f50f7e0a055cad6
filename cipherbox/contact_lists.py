"""Whom a recipient takes mail from, as two lists: what its inbox goes by, and what HQ may know
of it.
"""

from __future__ import annotations

import hashlib

import attrs

from cipherbox.classes import frozen


@frozen
class ContactLists:
    """Client ids as a person wrote them; they are compared without regard to case.

    Who is *blocked* is refused.  As soon as somebody is *allowed*, only those are taken; blocked
    wins over allowed.
    """

    allowed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    _allowed: frozenset[str] = attrs.field(init=False, eq=False, repr=False)
    _blocked: frozenset[str] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_allowed", frozenset(map(str.casefold, self.allowed)))
        object.__setattr__(self, "_blocked", frozenset(map(str.casefold, self.blocked)))

    def accepts(self, client_id: str) -> bool:
        """Whether this client's mail is taken."""
        name = client_id.casefold()
        return name not in self._blocked and (not self._allowed or name in self._allowed)

    @property
    def digest(self) -> bytes:
        """The same for lists that mean the same: SHA-256 of the sorted names; empty when both
        lists are empty.
        """
        if not self:
            return b""
        text = "\n".join([*sorted(self._allowed), "", *sorted(self._blocked)])
        return hashlib.sha256(text.encode()).digest()

    def __bool__(self) -> bool:
        return bool(self.allowed or self.blocked)

    def __len__(self) -> int:
        return len(self.allowed) + len(self.blocked)
