"""A dishonest sender: enrolled, with keys that are right, and free to seal and send whatever it
likes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import trio

from cipherbox.client.client import Client
from cipherbox.client.connection.confirm_window import Confirmed, PendingPublish
from cipherbox.client.options import PublishOptions
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.layout import hashes, split
from cipherbox.errors import CipherBoxError, EnvelopeError
from cipherbox.sealing import seal as sealing
from cipherbox.sealing.body import Message, pack
from cipherbox.wire import frames
from tests.client.attacks import over

IDS = EnvelopeIds(lambda: int(time.time() * 1000))


def now_ms() -> int:
    return int(time.time() * 1000)


async def crafted(
    client: Client,
    to: Sequence[str],
    content: Sequence[Message] | bytes,
    *,
    count: int | None = None,
    **more: Any,
) -> bytes:
    """An envelope of this client.  ``content``: messages, or a plaintext as it is, of ``count``
    messages.
    """
    bundles = await client.bundles(list(to))
    identity = client.home.identity
    assert identity is not None
    plain = content if isinstance(content, bytes) else pack(content)
    count = len(content) if count is None else count
    values: dict[str, Any] = {"envelope_id": IDS.next(), "sealed_at": now_ms(), **more}
    with mock.patch.object(sealing, "LAYOUT", plain[0]):
        return sealing.seal(identity, bundles, plain, count, **values).raw


async def crafted_in_session(
    client: Client,
    to: Sequence[str],
    plain: bytes,
    *,
    count: int,
    routing_key: str = "",
    **more: Any,
) -> bytes:
    """As `crafted`, in this client's session with each recipient, which it keeps like an honest
    one.
    """
    address = PublishOptions.make(to=to, stanza="ratchet", allow_mixed=True)
    target = await client.sealer.resolve_route(address)
    item = client.sealer.seal(address, target, plain, count, None)
    assert item.entry is not None
    assert client.outbox_sender is not None
    for step in item.entry.steps:
        await client.outbox_sender.keep_step(step)
    return item.raw


async def register(client: Client, patch: tuple[int, bytes] | None = None) -> None:
    """Registers the next bundle of the same keys; with ``patch`` it is none."""
    home, identity = client.home, client.home.identity
    assert identity is not None
    assert identity.bundle is not None
    made = identity.make_bundle(
        home.key, home.chain, identity.bundle.created_at, identity.bundle, identity
    )
    await client.connection.request(
        frames.Register, bundle=made.raw if patch is None else over(made.raw, patch), timeout_s=2
    )
    if patch is None:
        identity.bundle = made


async def submit(
    client: Client, raw: bytes, *, flags: int = 0, patience_s: float = 30.0
) -> Confirmed:
    """Sends bytes as they are; HQ's word, or its refusal raised."""
    done = trio.Event()
    generation, envelope_hash = _named(raw)
    item = PendingPublish(
        raw,
        bytes(raw[30:46]),
        1,
        lambda _: done.set(),
        flags=flags,
        generation=generation,
        envelope_hash=envelope_hash,
    )
    client.connection.window.add(item)
    try:
        with trio.fail_after(patience_s):
            await done.wait()
    finally:
        if not item.gone:
            client.connection.window.forget(item)
    if item.error is not None:
        raise item.error
    assert item.result is not None
    return item.result


def _named(raw: bytes) -> tuple[int, bytes]:
    """What HQ's log must name of it beside the id: generation and hash; what is no envelope HQ
    refuses.
    """
    try:
        layout = split(raw)
        return layout.prefix.generation, hashes(raw, layout).envelope_hash
    except EnvelopeError:
        return 0, bytes(32)


async def refusal(client: Client, raw: bytes) -> str:
    """The name of HQ's refusal."""
    try:
        await submit(client, raw)
    except CipherBoxError as error:
        return error.name
    return ""
