"""Peers that nobody knows yet: bounded by address before TLS, and with tries of their own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from cipherbox import pki
from cipherbox.config.toml_file import parse_origins
from cipherbox.errors import ConfigError
from cipherbox.limits import LIMITS
from cipherbox.net.tls import TlsStream, client_context
from cipherbox.server.connection.unauthenticated import UnauthenticatedConnections, group_of
from cipherbox.server.operations.monitor import Monitor
from cipherbox.wire import frames
from cipherbox.wire.token import decode_token
from tests.server.hq import PATIENCE_S, Running, codec_name, running
from tests.server.test_connections import hello
from tests.server.test_monitor import get, port


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_an_address_is_an_ipv4_address_or_a_64(host: str, group: str) -> None:
    assert group_of(host) == group


async def test_the_oldest_that_says_nothing_makes_room() -> None:
    lobby = UnauthenticatedConnections(2, 3)
    a, b = lobby.enter("A"), lobby.enter("A")
    assert a is not None
    assert b is not None
    a.silent = False
    c = lobby.enter("A")  # two of A are here, one is silent
    assert c is not None
    assert b.scope.cancel_called
    assert not a.scope.cancel_called
    c.silent = False
    assert lobby.enter("A") is None  # both of them speak
    other = lobby.enter("B")
    assert other is not None
    assert lobby.enter("C") is not None  # three in all: the silent one of B goes
    assert other.scope.cancel_called
    for place in (a, c, c):
        lobby.leave(place)
    assert len(lobby) == 1
    assert lobby.turned_away == 3


async def test_thousands_of_idle_connections_delay_nobody(tmp_path: Path) -> None:
    limits = attrs.evolve(
        LIMITS, greeting_per_address=20, greeting=30, connections=30, client_hello_s=3600.0
    )
    async with running(tmp_path / "hq", limits=limits) as r:
        person = await r.person("FL-LAB")
        host, _, number = r.address.rpartition(":")
        idle = [await trio.open_tcp_stream(host, int(number)) for _ in range(200)]
        for _ in range(3):
            lab = await r.dial(person)
            assert isinstance(await lab.publish(person.seal(person).raw), frames.Confirm)
        assert len(r.hq.unauthenticated) <= 20
        for stream in idle:
            await trio.aclose_forcefully(stream)


async def test_connections_that_never_say_hello_are_bounded_after_tls_too(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 0.02  # a slow machine may take fifty times as long
    limits = attrs.evolve(LIMITS, greeting_per_address=5, client_hello_s=2.0)
    async with running(tmp_path / "hq", limits=limits) as r:
        person = await r.person("FL-LAB")
        for _ in range(5):
            await r.dial(hello=False)
        with pytest.raises(Exception, match=r"cut|closed|reset"):
            await r.dial(person)
        mock_clock.rate = 1.0
        with trio.fail_after(PATIENCE_S):
            while len(r.hq.unauthenticated):  # each has so long for its HELLO, and no longer
                await trio.sleep(0.05)
        assert (await (await r.dial(person)).ask(frames.Resolve, "", "box.FL-LAB")).queues


async def test_without_a_certificate_one_address_has_few_places(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, anonymous_per_address=2)) as r:
        for _ in range(2):
            await r.dial()
        third = await r.dial(hello=False)
        await third.stream.send_all(third.wire.send(hello()))
        assert codec_name(await third.next()) == "too-many-connections"
        await r.client("FL-LAB")


async def test_a_good_token_keeps_its_tries_whatever_others_guess(tmp_path: Path) -> None:
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, enrol_attempts_per_minute=3)
    ) as r:
        boss = await r.dial(await r.person("BOSS", role="admin"))
        token = decode_token((await boss.ask(frames.Enrol, "FL-LAB", "client", False, 0)).token)
        csr = pki.make_csr(pki.new_key(), "FL-LAB")
        said = []
        for n in range(6):
            said.append(
                await (await r.dial()).refused(
                    frames.RequestCertificate, "FL-LAB", bytes([n] * 16), csr
                )
            )
        assert said == ["token"] * 3 + ["throttled"] * 3
        for _ in range(3):
            answer = await (await r.dial()).ask(
                frames.RequestCertificate, "FL-LAB", token.secret, csr
            )
            assert isinstance(answer, frames.Certificate)
        last = await r.dial()
        assert (
            await last.refused(frames.RequestCertificate, "FL-LAB", token.secret, csr)
            == "throttled"
        )
        assert await last.next() is None  # and whoever has no certificate is not kept


async def handshake(r: Running, origin: str | None) -> int:
    """The status with which HQ answers a WebSocket opening; 101: it is open."""
    host, _, number = r.websocket.removeprefix("wss://").rstrip("/").rpartition(":")
    person = await r.person("FL-LAB")
    below = await trio.open_tcp_stream(host, int(number))
    tls = TlsStream(below, client_context(r.root, person.chain, person.key), server_side=False)
    await tls.do_handshake()
    named = "" if origin is None else f"Origin: {origin}\r\n"
    await tls.send_all(
        (
            f"GET /cipherbox HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: "
            f"Upgrade\r\n{named}Sec-WebSocket-Key: "
            "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
    )
    answer = await tls.receive_some()
    await trio.aclose_forcefully(tls)
    return int(answer.split()[1])


async def test_a_web_page_connects_only_if_its_origin_is_named(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        assert await handshake(r, None) == 101
        assert await handshake(r, "https://evil.example") == 403
        assert await handshake(r, "null") == 403
        server = attrs.evolve(
            r.hq.config.server, websocket_origins="https://Lab.example, https://b.example:8443"
        )
        r.hq.live.now = attrs.evolve(r.hq.config, server=server)
        assert await handshake(r, "https://lab.example") == 101
        assert await handshake(r, "https://b.example:8443") == 101
        assert await handshake(r, "https://b.example") == 403
        assert await handshake(r, "http://lab.example") == 403


@pytest.mark.parametrize(
    "text", ["lab.example", "https://", "https://lab.example/page", "ftp://lab.example", "*"]
)
def test_what_is_no_origin_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="is no origin"):
        parse_origins(text)


async def test_nobody_starves_the_metrics_port(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 0.02  # a slow machine may take fifty times as long
    monitor = Monitor()
    async with port(monitor) as number:
        silent = [await trio.open_tcp_stream("127.0.0.1", number) for _ in range(100)]
        half = [await trio.open_tcp_stream("127.0.0.1", number) for _ in range(100)]
        for stream in half:
            await stream.send_all(b"GET /metrics HT")
        with trio.fail_after(1.5):  # before the time of those is over
            assert (await get(number, "/healthz"))[0] == 200
        for stream in (*silent, *half):
            await trio.aclose_forcefully(stream)


async def test_whoever_asks_for_metrics_all_the_time_gets_those_of_this_second(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    monitor, made = Monitor(), []
    monkeypatch.setattr(Monitor, "samples", lambda self: made.append(1) or [])
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    for _ in range(50):
        assert monitor.answer("GET", "/metrics", "").status == 200
    assert len(made) == 4
    for n in range(50):
        monitor.answer("GET", "/metrics", f"text/{n}")
    monkeypatch.setattr(time, "monotonic", lambda: 8.5)
    monitor.answer("GET", "/metrics", "")
    assert len(monitor._made) == 1
