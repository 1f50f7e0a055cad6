"""Who may do what.  The manual page `permissions` says it in words.

Admins may do everything but read other clients' queues.  A client may publish to every mailbox and
to exchanges it was granted, read its own queues and those it was granted, and declare queues of its
own.  HQ itself is connection 0.  Unknown and forbidden look the same wherever saying more would
tell what exists.
"""

from __future__ import annotations

from collections.abc import Mapping

from cipherbox.broker.model import ADMIN, EVERYBODY, ClientRow
from cipherbox.broker.queues import Queue
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import NotFound

RIGHTS = frozenset({"publish", "bind", "read", "declare", "admin"})
MAILBOX = "box."
SYSTEM = ".sys"  # ends the names of the queues that receipts come in
_NONE: dict[str, ContactLists] = {}
_EVERYBODY = ContactLists()


class Rights:
    """Clients, their roles and their grants, and whom each of them takes mail from, if it has
    told.
    """

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

    def twin(self, name: str) -> str | None:
        """The client whose id is the same but for case, if there is one."""
        return self._folded.get(name.casefold())

    def is_admin(self, client: str, connection: int) -> bool:
        if connection == 0:
            return True
        row = self.clients.get(client)
        return (row is not None and row.role == ADMIN) or (client, "admin", "") in self.grants

    def admins(self) -> set[str]:
        """Everybody who may administrate and is not revoked."""
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
        """Everybody who reads a queue and whose certificate is not revoked, sorted."""
        return tuple(sorted(c for c in queue.all_readers if not self.revoked(c)))

    def contacts_of(self, client: str) -> ContactLists:
        """Whom this client takes mail from, as it told; everybody, if it told nothing."""
        return self.contacts.get(client, _EVERYBODY)

    def takes(self, queue: Queue, sender: str) -> bool:
        """False where nobody who reads a queue takes mail from this sender.

        Receipts come everywhere: they answer what their reader sent.
        """
        if not self.contacts or queue.name.endswith(SYSTEM):
            return True
        readers = self.readers(queue)
        return not readers or any(self.contacts_of(reader).accepts(sender) for reader in readers)


def no_queue(name: str) -> NotFound:
    """One answer for a queue that is not there and for one that is not yours."""
    return NotFound(
        f"there is no queue {name!r} that you may use", remedy="see: cipherbox queue list"
    )
