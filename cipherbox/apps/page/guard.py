"""The guard in front of every request.  Each rule has a test from outside, `tests/page/test_guard`.

1. HTTP/1 only: no WebSocket, no HTTP/2; methods GET, HEAD, POST and PUT.
2. ``Host`` is exactly the random name and port of this start, once.  Another name reaches nothing,
   so a page elsewhere that resolves its own name to this machine (DNS rebinding) gets nothing.
3. What changes something comes from a page of ours: ``Origin`` is ours, and ``Sec-Fetch-Site``, if
   the browser states it, says same-origin.  The one exception is the log-in with a code, which is
   posted from a local file; its code is the proof.
4. Other sites may link here, and nothing else: no frame, image, script or fetch of theirs.
5. Without a cookie of the door there is only the log-in page and what it is drawn with.
6. A body is at most 3 MiB, except an upload's, which is streamed to the outbox.
7. Every answer, errors included, forbids scripts, frames, styles, forms and connections that are
   not of this page (CSP, without inline code, with trusted types), caching, sniffing and
   referrers, and is in a process of its own (COOP, CORP).
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cipherbox.apps.page.door import COOKIE, Door

LOGIN, STATIC, UPLOAD = "/enter", "/static/", "/upload"
METHODS = ("GET", "HEAD", "POST", "PUT")
BODY_BYTES = 3 * 1024 * 1024  # a text of 0.9 MB, of which each byte may take three
LIVE = "x-live"  # header of requests that no person made
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-store",
    # to others none; with "no-referrer" a browser states no Origin for the page's own forms either
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), interest-cohort=()",
}


class BodyTooLarge(Exception):
    """A body is larger than its route accepts."""


class Guard:
    """See the module; an ASGI application around another one."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http" or not scope["http_version"].startswith("1."):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await PlainTextResponse("HTTP/1.1 only", 505)(scope, receive, _with_headers(send))
            return
        send = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, _limited(scope, receive), send)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that goes no further, or None."""
        headers, path, method = Headers(scope=scope), str(scope["path"]), str(scope["method"])
        if headers.getlist("host") != [self._door.host]:
            return PlainTextResponse("There is no such page here.", 421)
        if method not in METHODS:
            return PlainTextResponse("Method not allowed.", 405)
        safe = method in ("GET", "HEAD")
        why = _cross_site(headers) if safe else self._foreign(headers, path)
        if why:
            return PlainTextResponse(why, 403)
        size = headers.get("content-length", "0")
        if path != UPLOAD and (not size.isdigit() or int(size) > BODY_BYTES):
            return PlainTextResponse("The request is too large.", 413)
        if path == LOGIN or (safe and path.startswith(STATIC)):
            return None
        cookie = cookie_of(headers)
        if self._door.admits(cookie, active=safe is False or LIVE not in headers):
            return None
        if safe and headers.get("sec-fetch-mode", "navigate") == "navigate":
            return RedirectResponse(LOGIN, 303)
        return PlainTextResponse("Log in first.", 401)

    def _foreign(self, headers: Headers, path: str) -> str:
        """Return why a request that changes something is refused, or nothing."""
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "same-origin")
        if origins == [self._door.origin] and site == "same-origin":
            return ""
        if path == LOGIN and origins == ["null"] and site in ("cross-site", "none", "same-origin"):
            return ""
        return "This comes from another page."


def _cross_site(headers: Headers) -> str:
    """Return why a request of another site is refused, or nothing: only links lead here."""
    site = headers.get("sec-fetch-site", "none")
    if site in ("same-origin", "none"):
        return ""
    navigates = headers.get("sec-fetch-mode") == "navigate"
    if navigates and headers.get("sec-fetch-dest", "document") == "document":
        return ""
    return "This comes from another page."


def cookie_of(headers: Headers) -> str:
    """Return the value of the door's cookie, or nothing."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _limited(scope: Scope, receive: Receive) -> Receive:
    if scope["path"] == UPLOAD:
        return receive
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > BODY_BYTES:
            raise BodyTooLarge
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
