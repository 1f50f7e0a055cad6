"""Prekeys at HQ: accepted if signed by their owner's keys; each one-time part is given out once.

HQ checks signatures when it accepts prekeys, so that a mistake shows at the owner and not at its
senders, and again when it gives them out; the receiver checks them, too.  A one-time part is
deleted before the answer leaves.  A client gets few one-time parts of another one, then the
last-resort prekey, so that nobody exhausts another's prekeys quickly.
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
    """The prekeys of all clients.

    ``most`` returns the limit of one-time prekeys of a client; ``in_store`` runs a store call in
    the store's thread.
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
        """Store a client's own prekeys and return the number of its one-time ones; raise
        BundleRefused if they are invalid.
        """
        most = self._most(client)
        if len(once) > most:
            raise InvalidRequest(f"too many one-time prekeys: at most {most} are stored")
        parts: list[tuple[int, bytes]] = []
        if signed or once:
            bundle = await self._directory.newest(client)
            if bundle is None:
                raise BundleRefused("publish your key bundle first: prekeys are signed by its keys")
            try:
                parts = _checked(client, bundle, signed, once)
            except BundleError as error:
                raise BundleRefused(f"HQ refused the prekeys: {error}") from error
        count = await self._in_store(self._store.put_prekeys, client, signed, parts, most, replace)
        assert isinstance(count, int)
        return count

    async def take(self, asker: str, client: str) -> PrekeyAnswer:
        """Return prekeys of one client; revoked clients, those without prekeys and those with new
        keys look the same.
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
            # the keys have changed; the owner stores new prekeys when it next connects
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
