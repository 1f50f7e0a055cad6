"""Proof: export the signed receipts of a message, and verify one that somebody sent."""

from __future__ import annotations

import uuid
from urllib.parse import quote

from starlette.responses import Response

from cipherbox import pki
from cipherbox.apps.page.sent import row_of
from cipherbox.apps.page.view import View
from cipherbox.envelope.receipt_file import verify_file
from cipherbox.errors import CipherBoxError, InvalidRequest, NotFound


async def form(view: View) -> Response:
    """Return the form for a receipt to verify."""
    return await view.page("proof.html", statement=None, trusted=False, error=None)


async def verify(view: View) -> Response:
    """Verify a receipt file offline, against the root certificate of this home."""
    text = (await view.form()).one("receipt").strip()
    try:
        if not text:
            raise InvalidRequest("there is no receipt", remedy="choose a file, or paste its text")
        statement = verify_file(text.encode())
    except CipherBoxError as error:
        return await view.refuse(error, "proof.html", statement=None, trusted=False)
    trusted = statement.root_sha256 == pki.fingerprint(view.desk.client.home.root).hex()
    return await view.page("proof.html", statement=statement, trusted=trusted, error=None)


async def export(view: View) -> Response:
    """Return one recipient's receipt for a message as a file."""
    row, recipient = await row_of(view), view.given("recipient")
    message_id = uuid.UUID(bytes=row.envelope_id)
    found = await view.desk.client.export_receipts(message_id)
    if recipient not in found:
        raise NotFound(f"{recipient} has not signed for this message yet")
    name = quote(f"{message_id}-{recipient}.receipt.json")
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
    return Response(found[recipient], headers=headers, media_type="application/octet-stream")
