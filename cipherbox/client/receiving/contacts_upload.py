"""Upload the contact lists to HQ, so that HQ refuses other senders at publish time.

That only saves the transfer: the inbox decides, whatever HQ knows. `[contacts] tell_hq
= false` keeps the lists here. WELCOME carries the digest of the lists HQ has, so nothing is sent
twice; of several programs of one home each retries until HQ has what the file says.
"""

from __future__ import annotations

from contextlib import suppress

from cipherbox.client.connection.connection import Connection
from cipherbox.client.events import LINE
from cipherbox.client.receiving.contacts import Contacts
from cipherbox.client.receiving.ports import Connected
from cipherbox.concurrency import repeat
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import CipherBoxError, CredentialsError, NetworkError
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

LOOK_S = 1.0  # between two checks whether HQ has the current lists


class ContactsUploader:
    """Upload the contact lists of one home to HQ when they differ from what HQ has."""

    def __init__(self, client: Connected) -> None:
        self._client = client
        self._contacts = Contacts(client.home.path)
        self._current: Connection | None = None
        self._known_digest = b""  # of the lists HQ has

    async def upload(self) -> bool:
        """Upload the lists if HQ has others; return whether anything was sent.

        The file is read again after each upload: another program may have changed it and uploaded
        an older version meanwhile.
        """
        connection, changed = self._client.connection, False
        while True:
            current = await connection.ready(connection.tries)
            if current is not self._current:
                self._current, self._known_digest = current, current.welcome.contacts
            lists = self._wanted()
            if lists.digest == self._known_digest:
                return changed
            self._known_digest = b"?"  # unknown until HQ answers
            await connection.request(
                frames.TellContacts, allowed=list(lists.allowed), blocked=list(lists.blocked)
            )
            self._known_digest, changed = lists.digest, True

    def _wanted(self) -> ContactLists:
        if not self._client.home.config.contacts.tell_hq:
            return ContactLists()
        lists = self._contacts.lists()
        # a truncated list would mean something else
        return lists if len(lists) <= LIMITS.names_per_frame else ContactLists()


async def keep_uploaded(client: Connected) -> None:
    """Upload the lists after each connection and each change, until the connection fails."""
    uploader, reported = ContactsUploader(client), ""

    async def upload() -> None:
        nonlocal reported
        await client.connection.ready()
        if await uploader.upload():
            client.events.emit(LINE, "HQ knows whom mail is taken from")
        reported = ""

    def failed(error: CipherBoxError, pause_s: float) -> None:
        nonlocal reported
        # The inbox applies the file regardless. Network and credential errors are reported by the
        # connection itself.
        if str(error) != reported and not isinstance(error, NetworkError | CredentialsError):
            reported = str(error)
            client.events.emit(LINE, f"HQ was not told whom mail is taken from: {error}")

    with suppress(CipherBoxError):  # the connection failed permanently, and said so
        await repeat(
            upload, LOOK_S, transient=lambda _: client.connection.failure is None, on_failure=failed
        )
