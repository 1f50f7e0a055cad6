"""Through a proxy to HQ: both kinds, both transports, every command's way; and what is said when
it does not work.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.client.client import open_client
from cipherbox.client.enrol import join
from cipherbox.client.home import load_home
from cipherbox.config.proxies import LineSettings, Proxy, is_excepted, parse_proxy, way_to
from cipherbox.config.settings import load_client_config, write_client_config
from cipherbox.errors import ConfigError, ProxyFailed
from cipherbox.net.proxy import connect_through
from tests.proxies import ConnectProxy, LittleProxy, SocksProxy

KINDS: dict[str, type[LittleProxy]] = {"http": ConnectProxy, "socks5": SocksProxy}
SECRET = "s3:cret%40!"


def credentials(directory: Path, text: str = f"lab:{SECRET}\n") -> Path:
    file = directory / "proxy.credentials"
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return file


def settings(proxy: LittleProxy, kind: str, file: Path | None = None) -> LineSettings:
    return LineSettings(f"{kind}://{proxy.address}", file)


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("kind", KINDS)
async def test_a_lab_behind_a_proxy_joins_sends_and_renews(
    empty_hq: Any, tmp_path: Path, kind: str
) -> None:
    """The name of HQ is one that only the proxy knows."""
    async with trio.open_nursery() as nursery:
        proxy = await KINDS[kind](nursery, "lab", SECRET).start()
        proxy.pieces = True
        gate_host, _, gate_port = empty_hq.gate.address.rpartition(":")
        proxy.leads_to = lambda _: (gate_host, int(gate_port))
        line = settings(proxy, kind, credentials(tmp_path))
        async with empty_hq.admin() as admin:
            token = await admin.enrol("FL-LAB")
            await empty_hq.join("CA-RC")
        from cipherbox.wire.token import decode_token, encode_token

        known = decode_token(token)
        elsewhere = encode_token(attrs.evolve(known, address="hq.only-inside.example:7443"))
        await join(empty_hq.home("FL-LAB"), elsewhere, line=line)
        assert load_client_config(empty_hq.home("FL-LAB")).line == line
        async with empty_hq.client("FL-LAB") as lab, empty_hq.client("CA-RC") as center:
            await lab.publish("through it", to="CA-RC")
            assert [m.content for d in await center.fetch() for m in d.messages] == [b"through it"]
            before = lab.home.chain[0].serial_number
            await lab.key_lifecycle.renew()
            assert lab.home.chain[0].serial_number != before
        assert set(proxy.asked) == {"hq.only-inside.example:7443"}
        assert len(proxy.asked) >= 4
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_websocket_goes_through_a_proxy(hq: Any, kind: str) -> None:
    async with trio.open_nursery() as nursery:
        proxy = await KINDS[kind](nursery).start()
        home = load_home(hq.home("FL-LAB"))
        home.config = attrs.evolve(home.config, address=hq.websocket, line=settings(proxy, kind))
        async with open_client(home) as lab:
            await lab.ping()
        assert len(proxy.asked) == 1
        nursery.cancel_scope.cancel()


async def test_https_proxy_and_no_proxy(hq: Any, no_environment: pytest.MonkeyPatch) -> None:
    async with trio.open_nursery() as nursery:
        proxy = await ConnectProxy(nursery, "lab", "p w").start()
        gate_host, _, gate_port = hq.gate.address.rpartition(":")
        proxy.leads_to = lambda _: (gate_host, int(gate_port))
        no_environment.setenv("HTTPS_PROXY", f"http://lab:p%20w@{proxy.address}")
        home = load_home(hq.home("FL-LAB"))
        home.config = attrs.evolve(home.config, address="hq.example:7443", tries=1)
        async with open_client(home) as lab:
            await lab.ping()
        assert proxy.asked == ["hq.example:7443"]
        # at 127.0.0.1, where no proxy of the environment is used
        async with hq.client("FL-LAB") as lab:
            await lab.ping()
        assert len(proxy.asked) == 1
        nursery.cancel_scope.cancel()
    line = LineSettings()
    assert way_to("hq.example", 7443, line).proxy is not None
    no_environment.setenv("NO_PROXY", "other, .example")
    assert way_to("hq.example", 7443, line).proxy is None
    assert way_to("hq.example", 7443, LineSettings("socks5://there")).proxy is not None
    assert way_to("hq.example", 7443, LineSettings("none")).proxy is None


# -- what is said ----------------------------------------------------------------------------------


async def failing(proxy: Proxy) -> str:
    with trio.fail_after(60), pytest.raises(ProxyFailed) as caught:
        await connect_through(proxy, "hq.example", 7443)
    shown = "".join(traceback.format_exception(caught.value)) + repr(proxy)
    assert SECRET not in shown
    assert "wrong-one" not in shown
    return str(caught.value)


def proxy_at(little: LittleProxy, kind: str, **given: str) -> Proxy:
    host, _, port = little.address.rpartition(":")
    return Proxy(kind, host, int(port), "[line] proxy", **given)


@pytest.mark.parametrize("kind", KINDS)
async def test_credentials_that_are_missing_or_wrong_are_said(kind: str) -> None:
    async with trio.open_nursery() as nursery:
        little = await KINDS[kind](nursery, "lab", SECRET).start()
        asks = await failing(proxy_at(little, kind))
        assert "asks for a user and a password" in asks
        assert "[line] proxy_credentials_file" in asks
        wrong = await failing(
            proxy_at(
                little, kind, user="lab", password="wrong-one", credentials="/etc/proxy.secret"
            )
        )
        assert "did not accept the user and password of /etc/proxy.secret" in wrong
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_proxy_that_cannot_reach_hq_says_so(kind: str) -> None:
    async with trio.open_nursery() as nursery:
        little = await KINDS[kind](nursery).start()
        little.leads_to = lambda _: ("127.0.0.1", 1)
        assert "hq.example:7443" in (said := await failing(proxy_at(little, kind)))
        assert "is HQ running" in said
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_proxy_at_the_address(kind: str) -> None:
    import socket

    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        said = await failing(Proxy(kind, "127.0.0.1", taken.getsockname()[1], "HTTPS_PROXY"))
    assert "cannot be reached" in said
    assert "is HTTPS_PROXY right?" in said


@pytest.mark.parametrize(
    ("kind", "answer", "says"),
    [
        (
            "http",
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            "does not allow a connection to hq.example:7443 (403 Forbidden)",
        ),
        ("http", b"HTTP/1.0 400 \x1b[2J\r\n\r\n", "refused the way to hq.example:7443"),
        (
            "http",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "refused the way to hq.example:7443 (400 Bad Request)",
        ),
        ("http", b"HTTP/1.1 200 OK\r\n\r\nmore", "sent something before HQ could"),
        ("http", b"\x05\x00", "is it a SOCKS proxy"),
        (
            "http",
            b"HTTP/1.1 100 Continue\r\n\r\n" + b"X: y\r\n" * 30000,
            "does not answer as an HTTP proxy",
        ),
        ("http", b"", "cut the connection"),
        ("http", b"SSH-2.0-OpenSSH\r\n", "does not answer as an HTTP proxy"),
        ("socks5", b"HTTP/1.1 400 Bad Request\r\n\r\n", "asks for a user and a password"),
        (
            "socks5",
            b"\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
            "does not allow a connection",
        ),
        ("socks5", b"", "asks for a user"),
    ],
)
async def test_other_answers_in_plain_words(kind: str, answer: bytes, says: str) -> None:
    async with trio.open_nursery() as nursery:
        little = await KINDS[kind](nursery).start()
        little.answer = answer
        said = await failing(proxy_at(little, kind))
        assert says in said
        assert "\x1b" not in said
        nursery.cancel_scope.cancel()


async def test_a_silent_proxy_does_not_hold_a_command(hq: Any) -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    home = load_home(hq.home("FL-LAB"))
    address = "{}:{}".format(*silent.socket.getsockname()[:2])
    home.config = attrs.evolve(
        home.config, line=LineSettings(f"http://{address}"), tries=1, timeout_s=0.3
    )
    with pytest.raises(
        Exception, match=f"did not answer within 0.3 s through the proxy http://{address}"
    ):
        async with open_client(home):
            pass
    await silent.aclose()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://lab:hunter2@proxy:3128", "proxy_credentials_file"),
        ("https://proxy:3128", "over https:// is not supported"),
        ("ftp://proxy", "is not the URL of a proxy"),
        ("http://proxy:99999", "is not the URL of a proxy"),
        ("http://proxy/path", "is not the URL of a proxy"),
        ("http://", "is not the URL of a proxy"),
    ],
)
def test_a_wrong_proxy_is_named_and_no_password_repeated(
    tmp_path: Path, url: str, says: str
) -> None:
    (tmp_path / "client.toml").write_text(
        f"[client]\nclient_id = 'A'\naddress = 'h:1'\n[line]\nproxy = '{url}'\n"
    )
    with pytest.raises(ConfigError, match=r"client\.toml: \[line\] proxy") as caught:
        load_client_config(tmp_path)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_a_proxy_may_be_called() -> None:
    assert str(parse_proxy("proxy.example:3128", "x")) == "http://proxy.example:3128"
    assert str(parse_proxy("socks5h://[::1]", "x")) == "socks5://[::1]:1080"
    assert str(parse_proxy("HTTP://Proxy", "x")) == "http://proxy:8080"


@pytest.mark.parametrize("text", ["nocolon", ":empty-user", "a:b\nc:d", "a:b\x01", ""])
def test_credentials_files_that_are_none(tmp_path: Path, text: str) -> None:
    line = LineSettings("http://proxy", credentials(tmp_path, text))
    with pytest.raises(ConfigError) as caught:
        way_to("hq", 1, line)
    assert str(line.proxy_credentials_file) in str(caught.value)
    for part in text.split(":"):
        assert len(part) < 4 or part not in str(caught.value).replace(str(tmp_path), "")


def test_a_credentials_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = credentials(tmp_path)
    file.chmod(0o644)
    with pytest.raises(ConfigError):
        way_to("hq", 1, LineSettings("http://proxy", file))
    file.chmod(0o600)
    way = way_to("hq", 1, LineSettings("http://proxy", file))
    assert way.proxy is not None
    assert (way.proxy.user, way.proxy.password) == ("lab", SECRET)
    assert SECRET not in repr(way)
    with pytest.raises(ConfigError, match="ASCII"):
        way_to("hq", 1, LineSettings("socks5://proxy", credentials(tmp_path, "lab:pässword")))


@pytest.mark.parametrize(
    ("host", "port", "listed", "found"),
    [
        ("hq.example", 7443, "", False),
        ("hq.example", 7443, "*", True),
        ("hq.example", 7443, "example", True),
        ("hq.example", 7443, ".example other", True),
        ("HQ.Example.", 7443, "*.example", True),
        ("hq-example", 7443, "example", False),
        ("badexample", 7443, "example", False),
        ("hq.example", 7443, "hq.example:7443", True),
        ("hq.example", 7443, "hq.example:443", False),
        ("10.1.2.3", 7443, "192.168.0.0/16,10.0.0.0/8", True),
        ("10.1.2.3", 7443, "10.1.2.4", False),
        ("fd00::1", 7443, "fd00::/8", True),
        ("fd00::1", 7443, "[fd00::1]:7443", True),
        ("::1", 7443, "::1", True),
    ],
)
def test_no_proxy_as_others_read_it(host: str, port: int, listed: str, found: bool) -> None:
    assert is_excepted(host, port, listed) is found


def test_a_client_with_a_proxy_is_read_back(tmp_path: Path) -> None:
    from cipherbox.config.settings import ClientConfig

    line = LineSettings("socks5://proxy:1080", tmp_path / "proxy.secret", ".inside.example")
    made = ClientConfig(tmp_path, "FL-LAB", "hq:7443", line=line)
    write_client_config(made)
    assert load_client_config(tmp_path) == made


async def test_why_hq_cannot_be_reached_is_said_in_the_systems_words() -> None:
    import socket

    from cipherbox.errors import NetworkError
    from cipherbox.net.connecting import connect
    from cipherbox.net.tls import first_contact_context

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with trio.open_nursery() as nursery:
            with pytest.raises(
                NetworkError, match=f"127.0.0.1:{port} cannot be reached: Connection refused"
            ):
                await connect(f"127.0.0.1:{port}", first_contact_context(), nursery)
