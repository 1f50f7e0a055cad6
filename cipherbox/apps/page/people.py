"""People: whose keys were compared, comparing them by telephone or QR code, and conversations."""

from __future__ import annotations

import functools
from typing import Any

import trio
from markupsafe import Markup
from starlette.responses import Response

from cipherbox.apps.page.desk import ACT_S
from cipherbox.apps.page.messages import Received, page_of
from cipherbox.apps.page.sent import SentItem, item_of
from cipherbox.apps.page.view import View
from cipherbox.apps.page.words import Explained
from cipherbox.client.inbox.encrypted_lines import START
from cipherbox.client.keys.comparing import Offer, accept_offer, agrees, offer_of, scan_text
from cipherbox.envelope.bundle import KeyBundle, fingerprint
from cipherbox.errors import CipherBoxError, NetworkError, TimedOut
from cipherbox.limits import check_client_id

TALK = 40  # messages of each side in a conversation


async def listing(view: View) -> Response:
    """Return everybody, what is known of their keys, and this client's own number."""
    own = _own(view)
    return await view.page(
        "people.html",
        people=await view.desk.people(anew=not view.redrawn),
        own=fingerprint(own) if own is not None else "",
        code=qr_code(own) if own is not None else "",
        client_id=view.desk.client.client_id,
    )


async def one(view: View) -> Response:
    """Return one person: the conversation, and the keys to compare."""
    return await _page(view)


async def compare(view: View) -> Response:
    """Mark a person's keys as compared if the number that was typed or scanned is theirs."""
    heard = (await view.form()).one("heard")
    try:
        offer = await _offer(view, ACT_S)
        if not agrees(heard, offer.bundle):
            said = _difference(view, offer, heard)
            return await _page(view, error=said, heard=heard, status=400)
        client = view.desk.client
        await trio.to_thread.run_sync(accept_offer, client.home.path, offer, client.directory.pins)
        await view.desk.people(anew=True)
    except CipherBoxError as error:
        return await _page(view, error=error, heard=heard, status=400)
    return view.go(f"/people/{offer.bundle.client_id}", "compared")


async def reseal(view: View) -> Response:
    """Seal what this person has not opened for the keys of today."""
    name = check_client_id(view.given("client_id"))
    _, errors = await view.desk.client.seal_again(name)
    if errors:
        return await _page(view, error=errors[0], status=400)
    return view.go(f"/people/{name}", "resealed")


def qr_code(bundle: KeyBundle) -> Markup:
    """Return the code that others scan from this screen or from paper, as SVG."""
    return _code(scan_text(bundle))


@functools.lru_cache(maxsize=4)  # it costs 20 ms, and a page that shows it is drawn again and again
def _code(text: str) -> Markup:
    """Return the code in black on white, in both colour schemes, as scanners need it."""
    import segno

    code = segno.make(text, error="m", micro=False)
    svg = code.svg_inline(scale=4, border=4, light="#fff", dark="#000", omitsize=True)
    return Markup(svg)  # noqa: S704 - drawn by segno from digits and a checked name


def _difference(view: View, offer: Offer, heard: str) -> Explained:
    name, _ = offer.bundle.client_id, view.translate
    old = next((one for one in offer.earlier if agrees(heard, one)), None)
    if old is not None:
        return Explained(
            _(
                "This is the number of key bundle {old} of {name}, and HQ shows bundle {new}.",
                old=old.sequence,
                new=offer.bundle.sequence,
                name=name,
            ),
            _("Ask {name} to show the present number, and compare again.", name=name),
        )
    return Explained(
        _("The numbers differ: these are not the keys that HQ shows for {name}.", name=name),
        _("Compare once more; if they still differ, send nothing and tell the admin."),
    )


async def _offer(view: View, most_s: float | None = None) -> Offer:
    name = check_client_id(view.given("client_id"))
    offer = await view.desk.at_hq(lambda: offer_of(view.desk.client, name), None, most_s)
    if offer is None and view.desk.client.connection.current is not None:
        raise TimedOut("HQ does not answer now", remedy="compare in a minute")
    if offer is None:
        raise NetworkError("HQ cannot be reached", remedy="compare when it can be reached again")
    return offer


async def _page(
    view: View,
    *,
    error: CipherBoxError | Explained | None = None,
    heard: str = "",
    status: int = 200,
) -> Response:
    name = check_client_id(view.given("client_id"))
    offer: Offer | None = None
    trouble = error
    try:
        offer = await _offer(view)
    except CipherBoxError as failure:
        trouble = trouble or failure
    pin = view.desk.client.directory.pins.get(name)
    own = _own(view)
    return await view.page(
        "person.html",
        status,
        name=name,
        pin=pin,
        offer=offer,
        shown=fingerprint(offer.bundle) if offer is not None else "",
        error=trouble,
        heard=heard,
        own=fingerprint(own) if own is not None else "",
        code=qr_code(own) if own is not None else "",
        talk=[] if view.desk.keyless else await _talk(view, name),
        client_id=view.desk.client.client_id,
    )


async def _talk(view: View, name: str) -> list[Received | SentItem]:
    """Return what both sent, newest first."""
    received = await view.desk.inbox(page_of, START, name, "", TALK)
    outbox = view.desk.client.outbox().outbox
    rows = await view.desk.outbox(outbox.newest_to, name, TALK)
    sent = [await view.desk.outbox(item_of, outbox, row) for row in rows]
    both: list[tuple[int, Any]] = [(one.entry.received_at, one) for one in received.rows]
    both += [(one.sealed_at, one) for one in sent]
    return [one for _, one in sorted(both, key=lambda pair: -pair[0])]


def _own(view: View) -> KeyBundle | None:
    identity = view.desk.client.home.identity
    return identity.bundle if identity is not None else None
