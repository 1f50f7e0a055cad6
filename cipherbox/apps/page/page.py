"""The page: its client, its door and its server, for as long as `run` runs.

`cipherbox page` runs it alone, and then it opens the client and receives; the agent runs it beside
its own client.  Keys under a password are opened when the first browser logs in with it.
"""

from __future__ import annotations

import trio

from cipherbox.apps.page.desk import Desk
from cipherbox.apps.page.door import LOCK, Door
from cipherbox.apps.page.guard import Guard
from cipherbox.apps.page.serving import listen, serve
from cipherbox.apps.page.site import Site
from cipherbox.apps.page.view import Helpers
from cipherbox.client.client import Client, open_client
from cipherbox.client.events import OnEvent
from cipherbox.client.home import home_with, unlocked, visible_folder
from cipherbox.client.keys.local_key import is_sealed
from cipherbox.concurrency import background
from cipherbox.config.settings import ClientConfig, parse_listen
from cipherbox.errors import PasswordError
from cipherbox.portable import lock_file

ANYWHERE = "127.0.0.1:0"


class Page:
    """See the module.  ``client``: one that is open and receives already; None: the page opens
    its own.
    """

    def __init__(
        self,
        config: ClientConfig,
        helpers: Helpers,
        *,
        client: Client | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._config, self._client, self._on_event = config, client, on_event
        self.sealed = is_sealed(config.home)
        self.folder = visible_folder(config.home)
        self.door = Door(
            config.home, self.folder, config.page.idle_minutes * 60.0, self.sealed, self._check
        )
        self._helpers = helpers
        self.site = Site(config.client_id, self.door, helpers)
        self._nursery: trio.Nursery | None = None

    async def run(
        self,
        address: str = ANYWHERE,
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; start with the page's URL.  Raise StoreLocked if the page of this
        home runs already.
        """
        ((host, port),) = parse_listen(address)
        with lock_file(self._config.home / LOCK, "the page of this home"):
            async with background() as nursery:
                self._nursery = nursery
                if self._client is not None:
                    self._attend(Desk(self._client), receives=False)
                elif not self.sealed:
                    await self._open(await self._key(None))
                listener, port = await listen(host, port)
                try:
                    self.door.open(port)
                    nursery.start_soon(serve, Guard(self.site.app, self.door), listener)
                    task_status.started(f"{self.door.origin}/")
                    await trio.sleep_forever()
                finally:
                    self.door.close()
                    if self.site.desk is not None:
                        self.site.desk.close()

    async def _key(self, password: str | None) -> bytes:
        return await trio.to_thread.run_sync(unlocked, self._config, password)

    async def _check(self, password: str) -> bool:
        """Return whether this is the password; the first right one opens the client."""
        try:
            key = await self._key(password)
        except PasswordError:
            return False
        if self.site.desk is None:
            await self._open(key)
        return True

    async def _open(self, local_key: bytes) -> None:
        assert self._nursery is not None
        await self._nursery.start(self._keep_client, local_key)

    async def _keep_client(self, local_key: bytes, task_status: trio.TaskStatus[None]) -> None:
        home = home_with(self._config, local_key)
        async with open_client(home, on_event=self._on_event, keep_trying=True) as client:
            self._attend(Desk(client), receives=True)
            task_status.started()
            await trio.sleep_forever()

    def _attend(self, desk: Desk, *, receives: bool) -> None:
        assert self._nursery is not None
        self.site.attend(desk, self._nursery)
        self._nursery.start_soon(desk.watch)
        self._nursery.start_soon(desk.watch_keys)
        if desk.client.role == "admin":
            self._nursery.start_soon(desk.sample, self._helpers.report)
        if receives and not desk.keyless:
            self._nursery.start_soon(desk.receive)
