"""Permissions, as the manual page `permissions` describes them.

Admins may do everything except read other clients' queues.  A client may publish to all mailboxes
and to exchanges granted to it, read its own queues and those granted to it, and declare queues of
its own.  HQ itself is connection 0.  Unknown and forbidden look the same wherever the difference
would reveal what exists.
"""

from __future__ import annotations

from collections.abc import Mapping

from cipherbox.broker.model import ADMIN, EVERYBODY, ClientRow
from cipherbox.broker.queues import Queue
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import NotFound

RIGHTS = frozenset({"publish", "bind", "read", "declare", "admin"})
MAILBOX = "box."
SYSTEM = ".sys"  # suffix of the mailboxes for receipts
_NONE: dict[str, ContactLists] = {}
_EVERYBODY = ContactLists()


class Rights:
    """Clients, their roles, grants and contact lists."""

    def __init__(
        self,
        clients: list[ClientRow],
        grants: list[tuple[str, str, str]],
        contacts: Mapping[str, ContactLists] = _NONE,
    ) -> None:
        self.contacts = dict(contacts)
        self.clients = {c.name: c for c in clients}
        self._folded = {c.name.casefold(): c.name for c in clients}
        self.grants = set(grants)

    def add(self, row: ClientRow) -> None:
        self.clients[row.name] = row
        self._folded[row.name.casefold()] = row.name

    def case_twin(self, name: str) -> str | None:
        """Return the client whose id is the same except for case, if there is one."""
        return self._folded.get(name.casefold())

    def is_admin(self, client: str, connection: int) -> bool:
        if connection == 0:
            return True
        row = self.clients.get(client)
        return (row is not None and row.role == ADMIN) or (client, "admin", "") in self.grants

    def admins(self) -> set[str]:
        """Return all admins that are not revoked."""
        found = {row.name for row in self.clients.values() if row.role == ADMIN}
        found |= {client for client, right, _ in self.grants if right == "admin"}
        return {name for name in found if not self.revoked(name)}

    def granted(self, client: str, right: str, resource: str) -> bool:
        return (client, right, resource) in self.grants or (
            EVERYBODY,
            right,
            resource,
        ) in self.grants

    def may_publish(self, client: str, connection: int, exchange: str) -> bool:
        return self.granted(client, "publish", exchange) or self.is_admin(client, connection)

    def revoked(self, client: str) -> bool:
        row = self.clients.get(client)
        return row is not None and bool(row.revoked_at)

    def readers(self, queue: Queue) -> tuple[str, ...]:
        """Return the readers of a queue that are not revoked, sorted."""
        return tuple(sorted(c for c in queue.all_readers if not self.revoked(c)))

    def contacts_of(self, client: str) -> ContactLists:
        """Return this client's contact lists; without any it accepts mail from all clients."""
        return self.contacts.get(client, _EVERYBODY)

    def accepts(self, queue: Queue, sender: str) -> bool:
        """Return False if no reader of the queue accepts mail from this sender.

        Receipts are always accepted: they answer what their reader sent.
        """
        if not self.contacts or queue.name.endswith(SYSTEM):
            return True
        readers = self.readers(queue)
        return not readers or any(self.contacts_of(reader).accepts(sender) for reader in readers)


def no_queue(name: str) -> NotFound:
    """Return the same error for a queue that does not exist and for one the client may not see."""
    return NotFound(f"no queue {name!r} that you may use", remedy="see: cipherbox queue list")
