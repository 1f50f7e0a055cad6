"""A valid, enrolled, dishonest sender against a recipient that also hears from an honest one.

Whatever it seals, names, compresses and sends, in whatever order: after each example the honest
message or file arrives once and within seconds, memory stays bounded, no file lies where its sender
may not put one or holds other bytes than its line says, and the recipient's next start works; in
the end it has signed for all that the honest one sent.

The memory of an example counts from its beginning on: Hypothesis, HQ and both senders are in this
process, too, and keep something of every one.  What all examples leave behind is counted once, in
the end, as what Python still holds.

What is known to matter is tried in every run (`attacks.KNOWN`), and so are errors that nobody
thought of, wherever something of the dishonest one is taken in (`traps`).  Others chance makes: 20,
and 20,000 in `make soak`.  Those of one part meet the same HQ and the same recipient; after a
failure the next try gets new ones, so that it shrinks to what fails alone, and what came before it
is named.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cipherbox.client.connection.connection import open_connection
from cipherbox.client.inbox.lines import line_id
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving.lookups import PER_SENDER
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.group import TYPE, Unsigned
from cipherbox.envelope.layout import split
from cipherbox.envelope.receipt import USE, Leaf
from cipherbox.errors import CipherBoxError, EnvelopeError
from cipherbox.limits import LIMITS
from cipherbox.ops.logs import ROOT
from cipherbox.sealing.body import Message, pack, text_message
from cipherbox.wire import frames
from tests import soak
from tests.client import attacks, traps
from tests.client.attacker import IDS, crafted, crafted_in_session, register, submit
from tests.client.memory import LEFT_BYTES, LEFT_OBJECTS, MOST_BYTES, Memory, held
from tests.client.real_hq import RealHq, real_hq
from tests.golden.make_envelopes import resigned

EXAMPLES, PARTS = (2000, 10) if soak.ON else (20, 1)
NOTE = 4000  # characters that are shown of an example
ARRIVES_S = 15.0  # on a machine that does much else
SPRINGS_S = 120.0
# What the honest sender sends after the attacks of an example; "keys": sealed and signed with a new
# bundle of its keys.
HONEST = ["message"] * 16 + ["file"] * 4 + ["session"] * 3 + ["keys"] * 2 + ["parts"]
# a recipient looks an honest sender's keys up no more often than a dishonest one's
KEYS_S = 60 / PER_SENDER * 2
STARTS = [False] * 24 + [True]  # whether the recipient is started again before
PLENTY = dict.fromkeys(
    ("key_requests_per_minute", "requests_per_minute", "bundles_per_client"), 1000000
)
# HQ is in this process: it shall not keep up to 64 MiB of bodies in memory that is counted here
HQ_LIMITS = {**PLENTY, "body_cache_bytes": 1024 * 1024}


class World:
    """HQ, an honest sender, a dishonest one, and a recipient that runs."""

    def __init__(self, path: Path, laid: traps.Traps) -> None:
        self._path, self.traps = path, laid
        self._over, self._news = trio.Event(), trio.Event()
        self._sent: deque[bytes] = deque(maxlen=4)
        self._ids: deque[bytes] = deque([bytes(16)], maxlen=4)
        self._came: dict[str, list[dict[str, Any]]] = {}  # content or name of a file -> lines
        # of the dishonest one, path -> hash, start of the message's id
        self._files: dict[str, tuple[str, str]] = {}
        self._said: set[str] = set()  # hashes of contents that it sent
        # starts of ids of messages of which it does not know how they end
        self._damaged: set[str] = set()
        self._wrong: list[str] = []
        self._number = 0
        self._keys_since = float("-inf")
        self._failure: Exception | None = None
        self.before: deque[list[attacks.Attack]] = deque(maxlen=5)  # examples

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        async with real_hq(self._path, limits=HQ_LIMITS) as hq:
            self._hq: RealHq = hq
            await hq.join("FL-LAB", "CA-RC", "BAD-LAB")
            async with (
                hq.client("FL-LAB", renew=False) as lab,
                hq.client("BAD-LAB", renew=False) as bad,
                trio.open_nursery() as own,
            ):
                self._lab, self._bad, self._own = lab, bad, own
                await self._start()
                for kind in dict.fromkeys(HONEST):
                    await self.honest(kind)
                await self._bad.bundles(["CA-RC"])
                self._memory, self._held = Memory(), held()
                task_status.started()
                await self._over.wait()
                own.cancel_scope.cancel()

    def end(self) -> None:
        self._over.set()

    async def example(self, plan: list[attacks.Attack], honest: str, start: bool) -> None:
        self._memory.restart()
        for one in plan:
            await self._attack(one)
        if start:
            await self._stop()
            await self._start()
        await self.honest(honest)
        assert self._memory.most() < MOST_BYTES, f"{self._memory.most()} bytes"
        assert not self._wrong, self._wrong
        self.before.append(plan)

    async def finished(self) -> None:
        """All is as it should be in the file, too; all was signed for; files still are what
        their lines say.
        """
        post = self._lab.outbox_sender
        assert post is not None
        with trio.move_on_after(ARRIVES_S):
            while post.outbox.unopened_by("CA-RC", 10):
                await trio.sleep(0.05)
        assert post.outbox.unopened_by("CA-RC", 10) == []
        size, count = (now - before for now, before in zip(held(), self._held, strict=True))
        assert size < LEFT_BYTES, f"{size} bytes are still held"
        assert count < LEFT_OBJECTS, f"{count} objects are still there"
        await self._stop()
        await self._start()
        await self.honest("message")
        await self._stop()
        assert not self._wrong, self._wrong
        for path, (sha256, stem) in self._files.items():
            content = await trio.Path(path).read_bytes()
            assert hashlib.sha256(content).hexdigest() == sha256
            assert sha256 in self._said or stem in self._damaged, f"{path} holds what nobody sent"
        for one in [
            one for many in self._came.values() for one in many if isinstance(one["content"], dict)
        ]:
            content = await trio.Path(one["content"]["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == one["content"]["sha256"]
        lines = [
            line["content"] for line in self._hq.lines("CA-RC") if line["sender_id"] == "FL-LAB"
        ]
        names = [one["filename"] if isinstance(one, dict) else one for one in lines]
        assert sorted(names) == sorted(self._came)
        texts = [one for one in lines if isinstance(one, str)]
        assert texts == sorted(texts)

    # -- the recipient -----------------------------------------------------------------------------

    async def _start(self) -> None:
        self._up = False
        await self._own.start(self._receive)
        self._up = True

    async def _receive(self, task_status: trio.TaskStatus[None]) -> None:
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        try:
            with self._scope:
                async with self._hq.client("CA-RC") as center:
                    if not self._up:
                        sent = await center.publish(
                            text_message("a question"), to=["BAD-LAB", "FL-LAB"]
                        )
                        self._asked = await center.sent(sent.message_ids[0])
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
            elif isinstance(line["content"], dict):
                self._look_at(line["content"], line["message_id"][:-4])

    def _look_at(self, content: dict[str, Any], stem: str) -> None:
        """A file of the dishonest one has its name."""
        path = Path(content["file"])
        own = self._hq.home("CA-RC") / "incoming" / "BAD-LAB"
        if (
            path.is_symlink()
            or not path.resolve().is_relative_to(own.resolve())
            or path.name.startswith(".")
        ):
            self._wrong.append(f"{path} is not below {own}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != content["sha256"]:
            self._wrong.append(f"{path} is not what its line says")
        self._files[str(path)] = content["sha256"], stem

    # -- the honest sender -------------------------------------------------------------------------

    async def honest(self, kind: str) -> None:
        self._number += 1
        name, raw = f"{kind} {self._number:06}", os.urandom(300)
        if kind in ("message", "session", "keys"):
            name = f"{self._number:06}"
            if kind == "keys" and trio.current_time() > self._keys_since + KEYS_S:
                self._keys_since = trio.current_time()
                await register(self._lab)
            await self._lab.publish(
                text_message(name), to="CA-RC", stanza="ratchet" if kind == "session" else None
            )
        elif kind == "file":
            await self._lab.publish(
                [Message(raw, "application/octet-stream", {"filename": name})], to="CA-RC"
            )
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
        if isinstance(line["content"], dict):
            assert line["content"]["sha256"] == hashlib.sha256(raw).hexdigest()
            assert await trio.Path(line["content"]["file"]).read_bytes() == raw

    # -- the dishonest one -------------------------------------------------------------------------

    async def _attack(self, attack: attacks.Attack) -> None:
        try:
            if isinstance(attack, attacks.Envelope):
                await self._send(attack)
            elif isinstance(attack, attacks.File):
                self._said.add(hashlib.sha256(attack.content).hexdigest())
                for one in attack.envelopes():
                    await self._send(one)
            elif isinstance(attack, attacks.Replay):
                if len(self._sent) >= attack.back:
                    await submit(self._bad, self._sent[-attack.back], patience_s=2)
            elif isinstance(attack, attacks.Receipt):
                await self._sign(attack)
            elif isinstance(attack, attacks.Trap):
                await self._trap(attack)
            elif isinstance(attack, attacks.Bundle):
                await self._register(attack)
            else:
                await self._frame(attack.raw())
        except (CipherBoxError, trio.TooSlowError):
            # what HQ refuses is refused; what it takes later, it takes later
            pass

    async def _send(self, one: attacks.Envelope) -> None:
        made = [await self._sealed(one) for _ in range(one.times)]
        self._sent.append(made[-1])
        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                for raw in made:
                    nursery.start_soon(self._submit, raw)

    async def _submit(self, raw: bytes) -> None:
        with suppress(CipherBoxError, trio.TooSlowError):
            await submit(self._bad, raw, patience_s=2)

    async def _sealed(self, one: attacks.Envelope) -> bytes:
        identity, plain = self._bad.home.identity, pack([said.message() for said in one.messages])
        assert identity is not None
        if one.damage is not None:
            plain = plain[:6] + attacks.over(plain[6:], one.damage)
        more: dict[str, Any] = {} if one.sealed_at is None else {"sealed_at": one.sealed_at}
        envelope_id = self._ids[-min(one.back, len(self._ids))] if one.back else IDS.next()
        right = identity.bundle
        if one.unknown_keys:
            identity.bundle = attrs.evolve(right, hash=os.urandom(32))
        try:
            raw = await (crafted_in_session if one.session else crafted)(
                self._bad,
                ["CA-RC"],
                plain,
                count=len(one.messages),
                routing_key=one.box,
                envelope_id=envelope_id,
                generation=one.generation,
                **more,
            )
        finally:
            identity.bundle = right
        envelope_id = bytes(raw[30:46])
        if one.damage is None and one.forge is None:
            self._said.update(hashlib.sha256(said.content).hexdigest() for said in one.messages)
        else:
            self._damaged.add(line_id(envelope_id, 0)[:-4])
        if one.forge is not None:
            raw = attacks.over(bytes(raw), one.forge)
            if one.resign:
                with suppress(EnvelopeError):
                    split(raw)
                    raw = resigned(raw, identity)
        self._ids.append(envelope_id)
        return raw

    async def _sign(self, one: attacks.Receipt) -> None:
        """It answers what the recipient has sent it."""
        identity = self._bad.home.identity
        assert identity is not None
        assert identity.bundle is not None
        row = self._asked
        leaf = Leaf(
            "CA-RC",
            os.urandom(16) if one.foreign else row.envelope_id,
            one.generation,
            row.envelope_hash,
            one.at,
            one.outcome,
            one.messages,
            row.commitment,
        )
        keys = os.urandom(32) if one.unknown_keys else identity.bundle.hash
        unsigned = Unsigned.over(
            "BAD-LAB", one.at, keys, identity.suite, [leaf] * one.leaves, one.head
        )
        raw = unsigned.group(identity.sign(USE, unsigned.digest), "CA-RC")
        raw = raw if one.patch is None else attacks.over(raw, one.patch)
        await self._send(attacks.Envelope((attacks.Said(raw, TYPE),), ".sys"))

    async def _trap(self, one: attacks.Trap) -> None:
        """What is about a transfer stays, so that each look at it raises; the others would leave
        nothing to attack.
        """
        transfer = os.urandom(16)
        about: object = transfer if one.place in traps.OF_TRANSFERS else traps.SENDER
        self.traps.put(one.place, about, one.error)
        # the first of each place has to spring; a later one may lie where nothing gets to
        patience_s = 3.0 if one.place in self.traps.places else SPRINGS_S
        before = self.traps.sprung[one.place, one.error]
        if one.place == "decode_group":
            await self._sign(attacks.receipt())
        elif one.place in ("lines_of", "open_envelope"):
            await self._send(attacks.Envelope((attacks.Said(b"a trap"),)))
        else:
            await self._attack(attacks.file(int.from_bytes(transfer, "big"), "a trap"))
        with trio.move_on_after(patience_s):
            while self.traps.sprung[one.place, one.error] == before:
                await trio.sleep(0.01)
        if about == traps.SENDER:
            self.traps.take_away(one.place, about)

    async def _register(self, one: attacks.Bundle) -> None:
        await register(self._bad, one.patch)

    async def _frame(self, raw: bytes) -> None:
        home = self._bad.home
        async with open_connection(
            self._hq.gate.address, home.context(), timeout_s=5
        ) as connection:
            connection._put(raw)
            await connection.ask(frames.GetRevocations, 1)


def shortened(text: str) -> str:
    """An example may be 200 KB long: its two ends say what it is."""
    return text if len(text) <= NOTE else f"{text[: NOTE // 2]} [...] {text[-NOTE // 2 :]}"


def shorten_notes(error: BaseException) -> None:
    """Shorten what Hypothesis shows of the examples that failed; its database keeps them whole."""
    if hasattr(error, "__notes__"):
        error.__notes__ = [shortened(note) for note in error.__notes__]
    for inner in getattr(error, "exceptions", ()):
        shorten_notes(inner)


class Worlds:
    """One world for all examples, until one fails."""

    def __init__(self, path: Path, nursery: trio.Nursery, laid: traps.Traps) -> None:
        self._path, self._nursery, self._count, self._traps = path, nursery, 0, laid
        self._world: World | None = None

    async def example(self, plan: list[attacks.Attack], honest: str, start: bool) -> None:
        world = self._world
        if world is None:
            self._count += 1
            directory = self._path / str(self._count)
            directory.mkdir()
            world = self._world = World(directory, self._traps)
            await self._nursery.start(world.run)
        try:
            await world.example(plan, honest, start)
        except Exception as error:
            self._world = None
            world.end()
            error.add_note(shortened(f"The examples before: {list(world.before)}"))
            raise

    async def finished(self) -> None:
        assert self._world is not None
        await self._world.finished()
        self._world.end()


@soak.more
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # or it hides what failed
@pytest.mark.parametrize("part", range(PARTS))
async def test_the_honest_ones_arrive_whatever_the_dishonest_one_sends(
    part: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # of every dead letter a line, and all of them would be kept
    caplog.set_level(logging.CRITICAL, ROOT)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(attacks.attacks, min_size=1, max_size=4),
        st.sampled_from(HONEST),
        st.sampled_from(STARTS),
    )
    def examples(plan: list[attacks.Attack], honest: str, start: bool) -> None:
        trio.from_thread.run(worlds.example, plan, honest, start)

    for known in attacks.KNOWN:
        examples = example(*known)(examples)
    laid = traps.Traps()
    with laid.laid():
        async with trio.open_nursery() as nursery:
            worlds = Worlds(tmp_path, nursery, laid)
            try:
                await trio.to_thread.run_sync(examples)
            except BaseException as error:
                shorten_notes(error)
                raise
            await worlds.finished()
    assert laid.places == set(traps.PLACES)
