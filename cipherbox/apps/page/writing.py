"""Write: a message to one, several, everybody or a route, and files of any size."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import PurePath

import trio
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from cipherbox.apps.page.view import View
from cipherbox.client.file_types import guess_type
from cipherbox.client.outbox.transfers import Transfers, Upload
from cipherbox.errors import CipherBoxError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.sealing.body import Message

TEXT = "text/plain; charset=utf-8"
TEXT_BYTES = 900_000  # of one form; more is sent as a file
PIECE_BYTES = 1024 * 1024
QUIET_S = 60.0  # an upload that sends nothing for so long has ended
EVERYBODY = "*"


async def form(view: View) -> Response:
    """Return the form, with recipients that a link named already chosen."""
    return await _page(view, view.query.getlist("to"))


async def send(view: View) -> Response:
    """Seal a text and keep it in the outbox; it is sent from there."""
    fields = await view.form()
    text = fields.one("text").replace("\r\n", "\n")
    whom, exchange, key = fields.all("to"), fields.one("exchange"), fields.one("key")
    try:
        if not text.strip():
            raise InvalidRequest("there is no text", remedy="write one, or add a file")
        if len(text.encode()) > TEXT_BYTES:
            raise InvalidRequest("the text is too long", remedy="send it as a file")
        to = await _recipients(view, whom, exchange)
        confirmation = await view.desk.client.publish(
            [Message(text.encode(), TEXT, {})],
            to=to or None,
            exchange="" if to else exchange,
            routing_key="" if to else key,
            wait=False,
        )
    except CipherBoxError as error:
        return await _page(view, whom, 400, error=error, text=text, exchange=exchange, key=key)
    return view.go(f"/sent/{confirmation.message_ids[0]}", "sent")


async def upload(view: View) -> Response:
    """Take one file into the outbox as it arrives, and begin to send it; the answer is JSON."""
    try:
        query = view.query
        path = tuple(part for part in query.get("path", "").split("/") if part)
        if not path or any(part in (".", "..") for part in path):
            raise InvalidRequest("this file has no name that can be sent")
        exchange, key = query.get("exchange", ""), query.get("key", "")
        to = await _recipients(view, query.getlist("to"), exchange)
        recipients = to or await view.desk.client.readers(exchange, key)
        await view.desk.client.bundles(recipients)  # a wrong one is an error before the bytes come
        outbox = view.desk.client.outbox().outbox
        kept = await view.desk.outbox(Upload, outbox)
        try:
            await _take(view, kept)
            transfer = await view.desk.outbox(
                Transfers(outbox).begin_upload,
                kept,
                path,
                recipients,
                guess_type(PurePath(path[-1])),
            )
        except BaseException:
            kept.discard()
            raise
    except CipherBoxError as error:
        said = view.explained(error)
        return JSONResponse({"error": said.what, "remedy": said.remedy or said.english}, 400)
    view.nursery.start_soon(view.desk.send, transfer)
    return JSONResponse({"size": transfer.size})


async def _take(view: View, kept: Upload) -> None:
    """Write what arrives; at most a piece of it is in memory."""
    waiting, size, ended = [], 0, False
    try:
        async with aclosing(view.request.stream()) as body:
            while not ended:
                with trio.fail_after(QUIET_S):
                    data = await anext(body, b"")
                ended = not data
                waiting.append(data)
                size += len(data)
                if size >= PIECE_BYTES or (ended and size):
                    await trio.to_thread.run_sync(kept.write, b"".join(waiting))
                    waiting, size = [], 0
    except (ClientDisconnect, trio.TooSlowError):
        raise InvalidRequest("the upload was interrupted", remedy="add the file again") from None


async def _recipients(view: View, whom: list[str], exchange: str) -> list[str]:
    """Return the chosen client ids; none for a route.  Raise InvalidRequest if nobody is chosen."""
    if EVERYBODY in whom:
        whom = await view.desk.everybody()
        if not whom:
            raise InvalidRequest(
                "HQ cannot be asked who there is", remedy="choose the recipients one by one"
            )
    for name in whom:
        check_client_id(name)
    if not whom and not exchange:
        raise InvalidRequest("nobody is chosen", remedy="choose one recipient or more, or a route")
    if whom and exchange:
        raise InvalidRequest(
            "recipients and a route are chosen", remedy="choose either people or a route"
        )
    return list(dict.fromkeys(whom))


async def _page(
    view: View,
    chosen: list[str],
    status: int = 200,
    *,
    error: CipherBoxError | None = None,
    text: str = "",
    exchange: str = "",
    key: str = "",
) -> Response:
    exchanges = await view.desk.listed("exchanges")
    return await view.page(
        "write.html",
        status,
        error=error,
        text=text,
        exchange=exchange,
        key=key,
        chosen=chosen,
        people=await view.desk.people(),
        exchanges=[str(row["name"]) for row in exchanges if row.get("name")],
    )
