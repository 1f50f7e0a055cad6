"""The example programs of the manual run, against a real HQ, in the order a reader runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import cipherbox
from cipherbox.envelope.bundle import decode_bundle

FOLDER = Path(cipherbox.__file__).parent / "manual" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_key_maker_receiver_and_sender(
    empty_hq: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CipherMQ's three roles."""
    key_maker, receiver, sender = map(example, ("key_maker", "receiver", "sender"))
    lab, center = (str(empty_hq.home(name)) for name in ("FL-LAB", "CA-RC"))
    async with empty_hq.admin() as admin:
        for name, home in (("FL-LAB", lab), ("CA-RC", center)):
            token = tmp_path / f"{name}.token"
            token.write_text(await admin.enrol(name) + "\n")
            await key_maker.main(home, str(token), str(tmp_path / f"{name}.public"))
            assert decode_bundle((tmp_path / f"{name}.public").read_bytes()).client_id == name
        await admin.grant("CA-RC", "declare")
        async with trio.open_nursery() as nursery:
            done: list[int] = []

            async def receive() -> None:
                done.append(await receiver.main(center, 3))

            nursery.start_soon(receive)
            with trio.fail_after(60):
                while not any(row["queue"] == "my_queue" for row in await admin.list("bindings")):
                    await trio.sleep(0.02)
                await admin.grant("FL-LAB", "publish", "my_exchange")
                await sender.main(lab, "CA-RC", ["one", "two", "three"])
                while not done:
                    await trio.sleep(0.02)
    assert done == [3]
    assert [line["content"] for line in empty_hq.lines("CA-RC")] == ["one", "two", "three"]
    shown = capsys.readouterr().out
    assert "[RECEIVER] Public key of CA-RC is registered at HQ, bundle 1" in shown
    assert shown.count("Confirmed: ") == 3
    assert "[SENDER] Server ACK received for message" in shown


async def test_a_full_handshake_through_hq(hq: Any) -> None:
    handshake = example("handshake")
    said: dict[str, str] = {}

    async def run(role: str, name: str, peer: str) -> None:
        said[role] = await handshake.main(str(hq.home(name)), role, peer)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "answer", "CA-RC", "FL-LAB")
            nursery.start_soon(run, "begin", "FL-LAB", "CA-RC")
    assert said == {"answer": "the sample is ready", "begin": "thanks for 'the sample is ready'"}


def test_every_example_is_printed_as_it_is() -> None:
    from cipherbox.cli.manual import EXAMPLES
    from cipherbox.cli.manual import example as printed

    files = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    assert sorted(files.values()) == sorted(printed(name) for name in EXAMPLES)
    for text in files.values():
        compile(text, "example", "exec")
