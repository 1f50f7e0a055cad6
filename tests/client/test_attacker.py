"""A valid, enrolled, dishonest sender against a recipient that also hears from an honest one.

Whatever it seals, names, compresses and sends, in whatever order: after each example the honest message or file arrives
once and within seconds, memory stays bounded, and the recipient's next start works.  CIPHERBOX_EXAMPLES chooses how
many examples (`make soak`: 20,000).  All of them meet the same HQ and the same recipient; after a failure the next try
gets new ones, so that it shrinks to what fails alone, and what came before it is named.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cipherbox.client.files import send_file
from cipherbox.client.inbox.receiver import Receiver
from cipherbox.client.link import open_link
from cipherbox.envelope.layout import split
from cipherbox.errors import CipherBoxError, EnvelopeError
from cipherbox.limits import LIMITS
from cipherbox.ops.logs import ROOT
from cipherbox.sealing.body import Message, pack, text_message
from cipherbox.wire import frames
from tests.client import attacks
from tests.client.attacker import IDS, crafted, submit
from tests.client.memory import MOST_BYTES, Memory
from tests.client.real_hq import RealHq, real_hq
from tests.golden.make_envelopes import resigned

EXAMPLES = int(os.environ.get("CIPHERBOX_EXAMPLES", "200"))
ARRIVES_S = 15.0  # on a machine that does much else
HONEST = ["message"] * 20 + ["file"] * 4 + ["parts"]  # what the honest sender sends after the attacks of an example
STARTS = [False] * 24 + [True]  # whether the recipient is started again before
PLENTY = dict.fromkeys(("key_requests_per_minute", "requests_per_minute", "bundles_per_client"), 1000000)


class World:
    """HQ, an honest sender, a dishonest one, and a recipient that runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over, self._news = trio.Event(), trio.Event()
        self._sent: deque[bytes] = deque(maxlen=4)
        self._ids: deque[bytes] = deque([bytes(16)], maxlen=4)
        self._came: dict[str, list[dict[str, Any]]] = {}  # content or name of a file -> lines
        self._number = 0
        self._failure: Exception | None = None
        self.before: deque[list[attacks.Attack]] = deque(maxlen=5)  # examples

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with real_hq(self._path, limits=PLENTY) as hq:
            self._hq: RealHq = hq
            await hq.join("FL-LAB", "CA-RC", "BAD-LAB")
            async with hq.client("FL-LAB") as lab, hq.client("BAD-LAB", renew=False) as bad, trio.open_nursery() as own:
                self._lab, self._bad, self._own = lab, bad, own
                await self._start()
                for kind in ("message", "file", "parts"):
                    await self.honest(kind)
                self._memory = Memory()
                task_status.started()
                await self._over.wait()
                own.cancel_scope.cancel()

    def end(self) -> None:
        self._over.set()

    async def example(self, plan: list[attacks.Attack], honest: str, start: bool) -> None:
        for one in plan:
            await self._attack(one)
        if start:
            await self._stop()
            await self._start()
        await self.honest(honest)
        assert self._memory.most() < MOST_BYTES, f"{self._memory.most()} bytes"
        self.before.append(plan)

    async def finished(self) -> None:
        """All is as it should be in the file, too."""
        await self._stop()
        lines = [line["content"] for line in self._hq.lines("CA-RC") if line["sender_id"] == "FL-LAB"]
        names = [one["filename"] if isinstance(one, dict) else one for one in lines]
        assert sorted(names) == sorted(self._came)
        texts = [one for one in lines if isinstance(one, str)]
        assert texts == sorted(texts)

    # -- the recipient ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._up = False
        await self._own.start(self._receive)
        self._up = True

    async def _receive(self, task_status: trio.TaskStatus[None]) -> None:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        try:
            with self._scope:
                async with self._hq.client("CA-RC") as center:
                    await Receiver(center, on_lines=self._lines).run(task_status=task_status)
        except Exception as error:
            self._failure = error
            self._news.set()
            if not self._up:
                task_status.started()
        finally:
            self._stopped.set()

    async def _stop(self) -> None:
        self._scope.cancel()
        await self._stopped.wait()

    def _lines(self, lines: list[bytes]) -> None:
        for line in map(orjson.loads, b"".join(lines).splitlines()):
            if line["sender_id"] == "FL-LAB":
                content = line["content"]
                name = content["filename"] if isinstance(content, dict) else content
                self._came.setdefault(name, []).append(line)
                self._news.set()

    # -- the honest sender --------------------------------------------------------------------------------------

    async def honest(self, kind: str) -> None:
        self._number += 1
        name, raw = f"{kind} {self._number:06}", os.urandom(300)
        if kind == "message":
            name = f"{self._number:06}"
            await self._lab.publish(text_message(name), to="CA-RC")
        elif kind == "file":
            await self._lab.publish([Message(raw, "application/octet-stream", {"filename": name})], to="CA-RC")
        else:
            raw *= LIMITS.part_bytes // 300 + 1
            path = self._path / "honest"
            await trio.Path(path).write_bytes(raw)
            await send_file(self._lab, path, [name], ["CA-RC"], "", compress=True)
        with trio.move_on_after(ARRIVES_S):
            while name not in self._came and self._failure is None:
                self._news = trio.Event()
                await self._news.wait()
        if self._failure is not None:
            raise AssertionError(f"the recipient ended: {self._failure!r}") from self._failure
        assert name in self._came, f"{name} did not arrive within {ARRIVES_S} s"
        (line,) = self._came[name]
        if kind != "message":
            assert line["content"]["sha256"] == hashlib.sha256(raw).hexdigest()
            assert await trio.Path(line["content"]["file"]).read_bytes() == raw

    # -- the dishonest one --------------------------------------------------------------------------------------

    async def _attack(self, attack: attacks.Attack) -> None:
        try:
            if isinstance(attack, attacks.Envelope):
                await self._send(attack)
            elif isinstance(attack, attacks.File):
                for one in attack.envelopes():
                    await self._send(one)
            elif isinstance(attack, attacks.Replay):
                if len(self._sent) >= attack.back:
                    await submit(self._bad, self._sent[-attack.back], patience_s=2)
            elif isinstance(attack, attacks.Bundle):
                await self._register(attack)
            else:
                await self._frame(attack.raw())
        except (CipherBoxError, trio.TooSlowError):  # what HQ refuses is refused; what it takes later, it takes later
            pass

    async def _send(self, one: attacks.Envelope) -> None:
        identity, plain = self._bad.home.identity, pack([said.message() for said in one.messages])
        if one.damage is not None:
            plain = plain[:6] + attacks.over(plain[6:], one.damage)
        more: dict[str, Any] = {} if one.sealed_at is None else {"sealed_at": one.sealed_at}
        envelope_id = self._ids[-min(one.back, len(self._ids))] if one.back else IDS.next()
        right = identity.bundle
        if one.unknown_keys:
            identity.bundle = attrs.evolve(right, hash=os.urandom(32))
        try:
            raw = await crafted(
                self._bad, ["CA-RC"], plain, count=len(one.messages), routing_key=one.box, envelope_id=envelope_id,
                generation=one.generation, **more,
            )  # fmt: skip
        finally:
            identity.bundle = right
        if one.forge is not None:
            raw = attacks.over(raw, one.forge)
            if one.resign:
                try:
                    split(raw)
                    raw = resigned(raw, identity)
                except EnvelopeError:
                    pass
        self._sent.append(raw)
        self._ids.append(envelope_id)
        await submit(self._bad, raw, patience_s=2)

    async def _register(self, one: attacks.Bundle) -> None:
        home, identity = self._bad.home, self._bad.home.identity
        made = identity.make_bundle(home.key, home.chain, identity.bundle.created_at, identity.bundle, identity)
        raw = made.raw if one.patch is None else attacks.over(made.raw, one.patch)
        await self._bad.line.request(frames.Register, bundle=raw, timeout_s=2)
        if one.patch is None:
            identity.bundle = made

    async def _frame(self, raw: bytes) -> None:
        home = self._bad.home
        async with open_link(self._hq.gate.address, home.context(), timeout_s=5) as link:
            link._put(raw)
            await link.ask(frames.GetRevocations, 1)


class Worlds:
    """One world for all examples, until one fails."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self._path, self._nursery, self._count = path, nursery, 0
        self._world: World | None = None

    async def example(self, plan: list[attacks.Attack], honest: str, start: bool) -> None:
        world = self._world
        if world is None:
            self._count += 1
            directory = self._path / str(self._count)
            directory.mkdir()
            world = self._world = World(directory)
            await self._nursery.start(world.run)
        try:
            await world.example(plan, honest, start)
        except Exception as error:
            self._world = None
            world.end()
            error.add_note(f"The examples before: {list(world.before)}")
            raise

    async def finished(self) -> None:
        assert self._world is not None
        await self._world.finished()
        self._world.end()


async def test_the_honest_ones_arrive_whatever_the_dishonest_one_sends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, ROOT)  # of every dead letter a line, and all of them would be kept

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(attacks.attacks, min_size=1, max_size=3), st.sampled_from(HONEST), st.sampled_from(STARTS))
    def examples(plan: list[attacks.Attack], honest: str, start: bool) -> None:
        trio.from_thread.run(worlds.example, plan, honest, start)

    async with trio.open_nursery() as nursery:
        worlds = Worlds(tmp_path, nursery)
        await trio.to_thread.run_sync(examples)
        await worlds.finished()


