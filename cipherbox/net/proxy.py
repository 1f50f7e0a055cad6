"""Connect to HQ through a proxy: HTTP CONNECT and SOCKS5.  The result is a plain stream, which
carries TLS with HQ.

The proxy sees HQ's address and the traffic volume, but no content: TLS is verified against HQ's own
root.  The proxy resolves names, since many networks with a proxy do not resolve external names.
"""

from __future__ import annotations

import base64
from typing import NoReturn

import trio

from cipherbox.config.proxies import HTTP, Proxy
from cipherbox.errors import ProxyFailed
from cipherbox.portable import escape_text, why_unreachable

_CREDENTIALS_REQUIRED, _GATEWAY = 407, {502, 503, 504}
_FORBIDDEN = {403, 405}
_READ_BYTES = 4096
_CREDENTIALS_REMEDY = (
    "put USER:PASSWORD into a file that only you can read and name it in client.toml: [line] "
    "proxy_credentials_file"
)
# RFC 1928, section 6
_SOCKS = {
    1: "failed for a reason it does not name",
    3: "cannot reach the network of",
    4: "cannot reach",
    5: "was refused a connection by",
    6: "got no answer from",
}
_SOCKS_FORBIDDEN = 2


async def connect_through(proxy: Proxy, host: str, port: int) -> trio.SocketStream:
    """Return a stream to ``host`` through the proxy, or raise ProxyFailed with the reason."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if proxy.kind == HTTP:
        return await _http(proxy, target)
    return await _socks5(proxy, host, port, target)


def _unreachable(proxy: Proxy, error: OSError) -> ProxyFailed:
    detail = why_unreachable(error)
    return ProxyFailed(f"the proxy {proxy} cannot be reached: {detail}; is {proxy.source} right?")


def _no_credentials(proxy: Proxy, answer: str) -> ProxyFailed:
    if proxy.credentials:
        return ProxyFailed(
            f"the proxy {proxy} did not accept the user and password of "
            f"{proxy.credentials} ({answer})",
            remedy="correct them there",
        )
    return ProxyFailed(
        f"the proxy {proxy} asks for a user and a password ({answer})", remedy=_CREDENTIALS_REMEDY
    )


def _forbids(proxy: Proxy, target: str, answer: str) -> ProxyFailed:
    return ProxyFailed(
        f"the proxy {proxy} does not allow a connection to {target} ({answer})",
        remedy=("ask whoever runs it to allow it. Many allow port 443 alone: HQ can listen there"),
    )


# -- HTTP CONNECT ----------------------------------------------------------------------------------


async def _http(proxy: Proxy, target: str) -> trio.SocketStream:
    try:
        stream = await trio.open_tcp_stream(proxy.host, proxy.port)
    except OSError as error:
        raise _unreachable(proxy, error) from error
    try:
        await _connect(stream, proxy, target)
    except OSError as error:
        await trio.aclose_forcefully(stream)
        raise _unreachable(proxy, error) from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        await trio.aclose_forcefully(stream)
        raise ProxyFailed(
            f"the proxy {proxy} cut the connection; is {proxy.source} right?"
        ) from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def _connect(stream: trio.SocketStream, proxy: Proxy, target: str) -> None:
    import h11

    wire = h11.Connection(h11.CLIENT)
    headers = [("Host", target), ("User-Agent", "cipherbox")]
    if proxy.credentials:
        both = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {both}"))
    request = wire.send(h11.Request(method="CONNECT", target=target, headers=headers))
    assert request is not None
    await stream.send_all(request + (wire.send(h11.EndOfMessage()) or b""))
    answered = False
    while True:
        try:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(_READ_BYTES)
                if not data and not answered:
                    raise trio.BrokenResourceError
                answered = True
                wire.receive_data(data)
                continue
        except h11.RemoteProtocolError:
            raise ProxyFailed(
                f"the proxy {proxy} does not answer as an HTTP proxy; is {proxy.source} right, "
                "or is it a SOCKS proxy (socks5://)?"
            ) from None
        if isinstance(event, h11.Response):
            break
    status = event.status_code
    if 200 <= status < 300:
        if wire.trailing_data[0]:
            raise ProxyFailed(
                f"the proxy {proxy} sent something before HQ could; is {proxy.source} right?"
            )
        return
    _refused(
        proxy, target, status, f"{status} {escape_text(event.reason.decode('latin-1'))}".strip()
    )


def _refused(proxy: Proxy, target: str, status: int, answer: str) -> NoReturn:
    if status == _CREDENTIALS_REQUIRED:
        raise _no_credentials(proxy, answer)
    if status in _FORBIDDEN:
        raise _forbids(proxy, target, answer)
    if status in _GATEWAY:
        raise ProxyFailed(
            f"the proxy {proxy} cannot reach {target} ({answer}); is HQ running, is its address "
            "right?"
        )
    raise ProxyFailed(
        f"the proxy {proxy} refused the way to {target} ({answer}); is {proxy.source} right?"
    )


# -- SOCKS5 ----------------------------------------------------------------------------------------


async def _socks5(proxy: Proxy, host: str, port: int, target: str) -> trio.SocketStream:
    import python_socks
    from python_socks.async_.trio import Proxy as Socks

    try:
        places = await trio.socket.getaddrinfo(proxy.host, proxy.port, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise _unreachable(proxy, error) from error
    user, password = (proxy.user, proxy.password) if proxy.credentials else (None, None)
    failure: ProxyFailed | None = None
    for *_, place in places:
        through = Socks(
            python_socks.ProxyType.SOCKS5, str(place[0]), proxy.port, user, password, True
        )
        try:
            return trio.SocketStream(await through.connect(host, port))
        except python_socks.ProxyConnectionError as error:
            failure = failure or _unreachable(
                proxy, error.__cause__ if isinstance(error.__cause__, OSError) else error
            )
        except python_socks.ProxyTimeoutError:
            failure = failure or ProxyFailed(
                f"the proxy {proxy} did not answer in time; is {proxy.source} right?"
            )
        except python_socks.ProxyError as error:
            raise _socks_words(proxy, target, error) from None
        except UnicodeError:
            raise ProxyFailed(f"{host!r} is not a name that a SOCKS5 proxy can be given") from None
        except OSError as error:
            raise ProxyFailed(
                f"the proxy {proxy} cut the connection; is {proxy.source} right?"
            ) from error
    raise failure or ProxyFailed(f"the proxy {proxy} cannot be reached: its name has no address")


def _socks_words(proxy: Proxy, target: str, error: Exception) -> ProxyFailed:
    code: int | None = getattr(error, "error_code", None)
    if code is None:  # it failed before the request for HQ: in the greeting, or the authentication
        return _no_credentials(proxy, escape_text(str(error)))
    if code == _SOCKS_FORBIDDEN:
        return _forbids(proxy, target, "not allowed by its rules")
    what = _SOCKS.get(code, f"answered with code {code} about")
    return ProxyFailed(f"the proxy {proxy} {what} {target}; is HQ running, is its address right?")
