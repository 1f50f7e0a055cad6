"""Prekeys at HQ: taken from their owners if the owner's own keys signed them, each one-time part
handed out once.

HQ checks signatures when it takes them, so that a mistake shows at the owner and not at whoever
writes to it, and when it hands them out; who receives them checks again.  A handed-out part is
deleted before the answer leaves.  One asker gets few one-time parts of one client; then it gets the
last resort, so that nobody uses up another's prekeys quickly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cipherbox.envelope import prekeys
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import BundleError, BundleRefused, InvalidRequest, Throttled
from cipherbox.server.connection.budget import Rate
from cipherbox.server.directory.bundles import Directory
from cipherbox.server.directory.trust import Trust
from cipherbox.store.port import Store
from cipherbox.wire.frames import PrekeyAnswer

T = TypeVar("T")


class PrekeyService:
    """See the module.

    ``most``: how many one-time prekeys a client may keep; ``in_store`` runs a store call in the
    store's thread.
    """

    def __init__(
        self,
        store: Store,
        directory: Directory,
        trust: Trust,
        most: Callable[[str], int],
        of_one: Rate,
        in_store: Callable[..., Awaitable[T]],
    ) -> None:
        self._store, self._directory, self._trust, self._most, self._of_one = (
            store,
            directory,
            trust,
            most,
            of_one,
        )
        self._in_store: Callable[..., Awaitable[object]] = in_store

    async def offer(self, client: str, signed: bytes, once: list[bytes], *, replace: bool) -> int:
        """Takes a client's own prekeys; how many one-time ones it has.  BundleRefused says why
        not.
        """
        most = self._most(client)
        if len(once) > most:
            raise InvalidRequest(f"at most {most} one-time prekeys are kept")
        parts: list[tuple[int, bytes]] = []
        if signed or once:
            bundle = await self._directory.newest(client)
            if bundle is None:
                raise BundleRefused("publish your key bundle first: prekeys are signed by its keys")
            try:
                parts = _checked(client, bundle, signed, once)
            except BundleError as error:
                raise BundleRefused(f"HQ did not accept the prekeys: {error}") from error
        count = await self._in_store(self._store.put_prekeys, client, signed, parts, most, replace)
        assert isinstance(count, int)
        return count

    async def take(self, asker: str, client: str) -> PrekeyAnswer:
        """Prekeys of one client; one that is revoked, one without, and one whose keys have
        changed look the same.
        """
        bundle = await self._directory.newest(client)
        if bundle is None or self._trust.revoked_at(client):
            return PrekeyAnswer(client, b"", b"")
        once = True
        try:
            self._of_one.spend(f"{asker} {client}")
        except Throttled:
            once = False
        found = await self._in_store(self._store.take_prekeys, client, once)
        assert isinstance(found, tuple)
        signed, part = found
        try:
            if signed:
                prekeys.check(prekeys.decode(signed), client, bundle.sign_keys)
        except BundleError:
            # other keys sign now; the owner leaves new prekeys when it next receives
            return PrekeyAnswer(client, b"", b"")
        return PrekeyAnswer(client, signed, part)


def _checked(
    client: str, bundle: KeyBundle, signed: bytes, once: list[bytes]
) -> list[tuple[int, bytes]]:
    if signed:
        prekeys.check(prekeys.decode(signed), client, bundle.sign_keys)
    parts = []
    for raw in once:
        part = prekeys.decode_once(raw)
        prekeys.check(part, client, bundle.sign_keys)
        parts.append((part.prekey_id, raw))
    return parts
