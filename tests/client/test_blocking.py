"""The blocking client, and the examples of the manual, in a thread beside a real HQ."""

from __future__ import annotations

import re
import threading
from functools import partial
from pathlib import Path
from typing import Any, assert_type

import pytest
import trio

import cipherbox.client
from cipherbox.checks import WrongType
from cipherbox.client.blocking import BlockingClient, connect
from cipherbox.client.client import Client
from cipherbox.client.outbox.rows import Row
from cipherbox.client.outbox.tracking import Timeline
from cipherbox.client.publishing.publish import Confirmation
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.errors import ConfigError, GoingAway, NotFound, UnknownRecipient
from tests import blocking_calls

MANUAL = Path(cipherbox.client.__file__).parent.parent / "manual" / "python-api.md"


async def in_thread(work: Any, *arguments: Any) -> Any:
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(partial(work, *arguments))


async def test_the_same_calls_without_trio(hq: Any) -> None:
    def work() -> None:
        with connect(hq.home("FL-LAB")) as lab, connect(hq.home("CA-RC")) as center:
            assert (lab.client_id, lab.role) == ("FL-LAB", "client")
            first = lab.publish("one", to="CA-RC")
            with lab.publisher(to="CA-RC") as publisher:
                publisher.send("two")
                publisher.send_many(str(n) for n in range(50))
                publisher.flush()
                assert publisher.confirmed == 51
            assert lab.status(first.message_ids[0]).found
            assert lab.ping() is None
            assert lab.resolve("", "box.CA-RC").version >= 1
            assert [b.client_id for b in lab.bundles(["CA-RC"])] == ["CA-RC"]
            with pytest.raises(UnknownRecipient):
                lab.publish("x", to="NOBODY")
            (delivery,) = center.fetch()
            assert delivery.messages[0].content == b"one"
            center.nack(delivery)
            found: list[bytes] = []
            with center.consume() as deliveries:
                for delivery in deliveries:
                    found += [m.content for m in delivery.messages]
                    assert center.ack(delivery) == 1
                    if len(found) == 52:
                        break
                assert deliveries.next(timeout_s=0.05) is None
            assert found == [b"one", b"two", *(b"%d" % n for n in range(50))]
            with pytest.raises(NotFound), center.consume("no_queue"):
                pass
            lab.publish(["a", "b"], to="CA-RC")
            assert center.receive(count=2) == 2
            with pytest.raises(AttributeError):
                _ = lab.no_such_call
            with pytest.raises(RuntimeError):
                lab.publisher(to="CA-RC").send("outside a with block")

    await in_thread(work)
    assert [line["content"] for line in hq.lines("CA-RC")] == ["a", "b"]


def test_its_calls_are_generated_from_those_of_the_client() -> None:
    assert blocking_calls.generated() == blocking_calls.FILE.read_text("utf-8"), (
        "run: make generate"
    )
    public = {name for name in dir(Client) if not name.startswith("_")}
    assert public - set(dir(BlockingClient)) == blocking_calls.LEFT_OUT


async def test_a_typed_program(hq: Any) -> None:
    """`make check` compares its types."""

    def work() -> None:
        with connect(hq.home("FL-LAB")) as lab, connect(hq.home("CA-RC")) as center:
            sent = assert_type(lab.publish("one", to=["CA-RC"]), Confirmation)
            with center.consume_unopened() as deliveries:
                (taken,) = assert_type(deliveries.batch(), list[Delivery])
                assert not taken.opened
                assert assert_type(center.open(taken), Delivery).messages[0].content == b"one"
                assert assert_type(center.ack(taken), int) == 1
            row = assert_type(lab.sent(sent.message_ids[0]), Row | None)
            assert row is not None
            assert assert_type(lab.timeline(sent.message_ids[0]), Timeline).recipients == ("CA-RC",)
            assert assert_type(lab.wait_for([sent.envelope_id], "delivered", 60), bool)
            assert assert_type(lab.readable_queues(), list[str]) == [
                "box.FL-LAB",
                "box.FL-LAB.bulk",
            ]
            assert assert_type(lab.mailbox, str) == "box.FL-LAB"
            assert assert_type(lab.list("queues"), list[dict[str, Any]])
            assert lab.hq is not None
            with pytest.raises(WrongType, match=r"^Client\.publish: to must be"):
                lab.publish("x", to=7)  # type: ignore[arg-type]

    await in_thread(work)


async def test_close_from_another_thread_ends_who_waits(hq: Any) -> None:
    def work() -> None:
        client = connect(hq.home("CA-RC"))
        outcome: list[BaseException] = []
        waiting = threading.Event()

        def wait() -> None:
            try:
                with client.consume() as deliveries:
                    waiting.set()
                    deliveries.next()
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(300)
        client.close()
        client.close()
        thread.join(60)
        assert not thread.is_alive()
        assert isinstance(outcome[0], GoingAway)
        with pytest.raises(GoingAway):
            client.ping()

    await in_thread(work)


async def test_many_threads_share_a_client(hq: Any) -> None:
    def work() -> None:
        with connect(hq.home("FL-LAB")) as lab:
            threads = [
                threading.Thread(target=lab.publish, args=(str(n),), kwargs={"to": "CA-RC"})
                for n in range(16)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        with connect(hq.home("CA-RC")) as center:
            found = center.fetch(envelopes=100)
            assert sorted(int(d.messages[0].content) for d in found) == list(range(16))

    await in_thread(work)


async def test_an_error_of_the_block_stays_and_nothing_is_waited_for(hq: Any) -> None:
    def work() -> None:
        def block() -> None:
            with connect(hq.home("FL-LAB")) as lab, lab.publisher(to="CA-RC") as publisher:
                publisher.send("x")
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            block()

    await in_thread(work)


def test_a_home_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cipherbox --home .* join"):
        connect(tmp_path)


def test_names_are_imported_when_they_are_used() -> None:
    for name in cipherbox.client.__all__:
        assert getattr(cipherbox.client, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = cipherbox.client.no_such_name


async def test_the_examples_of_the_manual_run(hq: Any, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", MANUAL.read_text("utf-8"), re.S | re.M)
    assert len(examples) >= 5
    for example in examples:
        names = {"lab_home": hq.home("FL-LAB"), "center_home": hq.home("CA-RC")}
        await in_thread(exec, compile(example, str(MANUAL), "exec"), names)
    said = capsys.readouterr().out
    assert "1000 messages in" in said
    assert "2 messages received" in said
    assert "FL-LAB in a session: Sample 17 is ready\nCA-RC in a session: Thank you\n" in said
