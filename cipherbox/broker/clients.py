"""Limits and contact lists of one client, and the queues it owns."""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import Done
from cipherbox.broker.rights import MAILBOX
from cipherbox.broker.state import BrokerState
from cipherbox.broker.usage import SETTINGS
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import Forbidden, InvalidRequest, NotFound


def owned_queues(state: BrokerState, client: str) -> int:
    """Return the number of queues a client owns besides its mailboxes."""
    theirs = (state.queues[name] for name in state.reads.get(client, ()))
    return sum(1 for q in theirs if q.owner == client and not q.name.startswith(MAILBOX))


def limit_client(state: BrokerState, c: m.LimitClient) -> Done:
    """Set a limit for one client, or return it to the settings."""
    if not state.rights.is_admin(c.client, c.connection):
        raise Forbidden("only an admin may change a client's limits")
    if c.target not in state.rights.clients:
        raise NotFound(f"no client {c.target!r}")
    if c.what not in SETTINGS:
        raise InvalidRequest(f"unknown limit {c.what!r}: must be one of {', '.join(SETTINGS)}")
    key = (c.target, c.what)
    if state.totals.overrides.get(key, -1) == c.most:
        return Done(c.correlation, 0)
    if c.most < 0:
        del state.totals.overrides[key]
    else:
        state.totals.overrides[key] = c.most
    state.effects.changes.client_limits[key] = c.most
    return Done(c.correlation, 1)


def tell_contacts(state: BrokerState, c: m.TellContacts) -> Done:
    """Replace a client's contact lists.

    The signed log cannot forget: it records the lengths of the lists and no names.
    """
    if state.rights.contacts_of(c.client) == c.lists:
        return Done(c.correlation, 0)
    set_contacts(state, c.client, c.lists)
    lengths: dict[str, object] = {"allowed": len(c.lists.allowed), "blocked": len(c.lists.blocked)}
    state.effects.acts.append(m.Act(c.client, "TellContacts", lengths))
    return Done(c.correlation, 1)


def set_contacts(state: BrokerState, client: str, lists: ContactLists) -> None:
    """Set a client's contact lists; empty lists are removed."""
    contacts = state.rights.contacts
    if lists:
        contacts[client] = lists
    elif contacts.pop(client, None) is None:
        return
    state.effects.changes.contacts[client] = lists
    state.rights_changed()
