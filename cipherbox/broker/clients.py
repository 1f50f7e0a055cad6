"""How much one client may have, and the queues it has."""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import Done
from cipherbox.broker.rights import MAILBOX
from cipherbox.broker.state import BrokerState
from cipherbox.broker.usage import SETTINGS
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import Forbidden, InvalidRequest, NotFound


def owned_queues(state: BrokerState, client: str) -> int:
    """How many queues a client has beside its mailboxes."""
    theirs = (state.queues[name] for name in state.reads.get(client, ()))
    return sum(1 for q in theirs if q.owner == client and not q.name.startswith(MAILBOX))


def limit_client(state: BrokerState, c: m.LimitClient) -> Done:
    """An admin says how much one client may have, or that it is as the settings say."""
    if not state.rights.is_admin(c.client, c.connection):
        raise Forbidden("only an admin may do that")
    if c.target not in state.rights.clients:
        raise NotFound(f"there is no client {c.target!r}")
    if c.what not in SETTINGS:
        raise InvalidRequest(
            f"a client has no limit of {c.what!r}; there are {', '.join(SETTINGS)}"
        )
    key = (c.target, c.what)
    if state.totals.own.get(key, -1) == c.most:
        return Done(c.correlation, 0)
    if c.most < 0:
        del state.totals.own[key]
    else:
        state.totals.own[key] = c.most
    state.effects.changes.client_limits[key] = c.most
    return Done(c.correlation, 1)


def tell_contacts(state: BrokerState, c: m.TellContacts) -> Done:
    """A client says whom it takes mail from.  The signed log cannot forget, so it gets the
    numbers and no names.
    """
    if state.rights.contacts_of(c.client) == c.lists:
        return Done(c.correlation, 0)
    set_contacts(state, c.client, c.lists)
    told: dict[str, object] = {"allowed": len(c.lists.allowed), "blocked": len(c.lists.blocked)}
    state.effects.acts.append(m.Act(c.client, "TellContacts", told))
    return Done(c.correlation, 1)


def set_contacts(state: BrokerState, client: str, lists: ContactLists) -> None:
    """These are a client's lists from now on; empty ones are forgotten."""
    contacts = state.rights.contacts
    if lists:
        contacts[client] = lists
    elif contacts.pop(client, None) is None:
        return
    state.effects.changes.contacts[client] = lists
    state.rights_changed()
