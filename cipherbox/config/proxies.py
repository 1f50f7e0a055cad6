"""The route of a client's connection to HQ: direct, or through a proxy from the settings or the
environment.

1. `[line] proxy` counts first; only when it is empty the environment is asked: HTTPS_PROXY, as
   other programs read it.  ``proxy = "none"`` connects directly whatever the environment says.
2. What `[line] no_proxy` (with the environment's proxy: NO_PROXY) lists is reached directly.  The
   environment's proxy is never used for this machine itself.
3. A name and a password for the proxy stand in a file, never in the settings.  In HTTPS_PROXY they
   may stand in the URL, as is usual there; they are never shown.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs

from cipherbox.classes import frozen
from cipherbox.config.secret_file import secret
from cipherbox.config.toml_file import setting
from cipherbox.errors import ConfigError
from cipherbox.readable import Sentence

HTTP, SOCKS5 = "http", "socks5"
DIRECT = "none"
_KINDS = {"http": HTTP, "socks5": SOCKS5, "socks5h": SOCKS5}
_PORTS = {HTTP: 8080, SOCKS5: 1080}
_USUAL = "http://proxy.example.org:3128 or socks5://proxy.example.org:1080"


@frozen
class LineSettings:
    """Table `[line]`."""

    proxy: str = setting(
        "",
        "http://host:port (CONNECT) or socks5://host:port; empty: use HTTPS_PROXY; none: no proxy",
    )
    proxy_credentials_file: Path | None = setting(
        None, "file with USER:PASSWORD for the proxy; credential:NAME: from systemd"
    )
    no_proxy: str = setting("", "hosts, domains and networks reached directly, separated by commas")


@frozen
class Proxy:
    """A proxy, and where it is configured."""

    kind: str
    host: str
    port: int
    source: str  # what to change to have another: "[line] proxy in client.toml", "HTTPS_PROXY"
    user: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)
    credentials: str = ""  # where the user and the password come from; empty: there are none

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


@frozen
class Way:
    """How an address is reached; ``why`` is the setting that decided it."""

    proxy: Proxy | None
    why: str


def way_to(
    host: str, port: int, settings: LineSettings, environment: Mapping[str, str] | None = None
) -> Way:
    """Return how ``host`` is reached from here; raise ConfigError if the proxy's URL is invalid."""
    environment = os.environ if environment is None else environment
    named, excepted = settings.proxy.strip(), settings.no_proxy
    if named:
        source, exceptions = "[line] proxy in client.toml", "[line] no_proxy"
        if named.lower() == DIRECT:
            return Way(None, "[line] proxy = none")
        url, secret_allowed = named, False
    else:
        source = next(
            (name for name in ("https_proxy", "HTTPS_PROXY") if environment.get(name, "").strip()),
            "",
        )
        if not source:
            return Way(None, Sentence("no proxy is set"))
        exceptions, secret_allowed = "NO_PROXY", True
        url = environment[source].strip()
        if _is_loopback(host):
            return Way(
                None, Sentence("{source} is not used for this machine itself", source=source)
            )
        excepted = excepted or environment.get("no_proxy", "") or environment.get("NO_PROXY", "")
    if is_excepted(host, port, excepted):
        return Way(None, Sentence("{exceptions} names {host}", exceptions=exceptions, host=host))
    proxy = parse_proxy(url, source, secret_allowed=secret_allowed)
    return Way(with_credentials(proxy, settings.proxy_credentials_file), source)


def parse_proxy(url: str, source: str, *, secret_allowed: bool = False) -> Proxy:
    """Return the proxy of a URL; ConfigError never repeats a password in it."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    kind = _KINDS.get(parts.scheme.lower())
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme.lower() == "https":
        raise ConfigError(
            f"{source}: a proxy over https:// is not supported",
            remedy=("name it with http://. What passes through it is encrypted all the way to HQ"),
        )
    if kind is None or not host or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"{source} is not the URL of a proxy: say for example {_USUAL}")
    if (parts.username is not None or parts.password is not None) and not secret_allowed:
        raise ConfigError(
            f"{source}: put USER:PASSWORD into a file that only you can read, and name that file: "
            "[line] proxy_credentials_file"
        )
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    proxy = Proxy(kind, host, port or _PORTS[kind], source)
    return (
        _checked(attrs.evolve(proxy, user=user, password=password, credentials=source))
        if user
        else proxy
    )


def with_credentials(proxy: Proxy, file: Path | None) -> Proxy:
    """Return the proxy with the user and password of the file, which is read for each connection
    and may change.
    """
    if file is None:
        return proxy
    try:
        text = secret(file).decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text in UTF-8: it has one line, USER:PASSWORD") from None
    user, colon, password = text.rstrip("\r\n").partition(":")
    if not colon or not user or "\n" in password or "\r" in password:
        raise ConfigError(f"{file}: one line is expected here, USER:PASSWORD")
    return _checked(attrs.evolve(proxy, user=user, password=password, credentials=str(file)))


def _checked(proxy: Proxy) -> Proxy:
    """Return the proxy if its credentials can be sent: RFC 1929 allows 255 bytes each, SOCKS
    libraries send ASCII only, and an HTTP header takes no line ends.
    """
    both = proxy.user + proxy.password
    fits = both.isascii() and 0 < len(proxy.user) < 256 and 0 < len(proxy.password) < 256
    if proxy.kind == SOCKS5 and not fits:
        raise ConfigError(
            f"{proxy.credentials}: SOCKS5 takes a user and a password of 1 to 255 ASCII characters"
        )
    if any(ord(c) < 32 or ord(c) == 127 for c in both):
        raise ConfigError(
            f"{proxy.credentials}: the user and the password for the proxy hold a control character"
        )
    return proxy


def is_excepted(host: str, port: int, listed: str) -> bool:
    """Return whether a list as in NO_PROXY contains this host: by name, by a domain above it, by
    address, by network, or by ``*``.
    """
    host = host.lower().rstrip(".")
    for entry in listed.replace(",", " ").split():
        entry = entry.lower()
        name, colon, wanted = entry.rpartition(":")
        if colon and wanted.isdigit() and (":" not in name or name.startswith("[")):
            if int(wanted) != port:
                continue
            entry = name
        entry = entry.strip("[]")
        if entry == "*" or _same_network(host, entry):
            return True
        domain = entry.removeprefix("*").strip(".")
        if domain and (host == domain or host.endswith(f".{domain}")):
            return True
    return False


def _same_network(host: str, entry: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
