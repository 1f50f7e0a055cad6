"""Fixtures of the page's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from selenium.common.exceptions import WebDriverException
from urllib3.exceptions import HTTPError

from tests.client.real_hq import RealHq, real_hq
from tests.page.chromium import chromium, sized
from tests.page.web import Web, page_of

Browse = Callable[[Callable[[Any], None]], Any]


class Browser:
    """A browser for all tests of a process; one that does not answer any more, as a browser's own
    fault may leave it, is ended, and another one is started.
    """

    def __init__(self) -> None:
        self._driver: Any = None
        self._open = ExitStack()

    def tidy(self) -> Any:
        """Return it with one empty tab of the usual size."""
        if self._driver is not None:
            try:
                return self._tidied(self._driver)
            except (WebDriverException, HTTPError):  # the latter of a driver that does not answer
                self.close()
        self._driver = self._open.enter_context(chromium())
        return self._tidied(self._driver)

    def _tidied(self, driver: Any) -> Any:
        while len(driver.window_handles) > 1:
            driver.switch_to.window(driver.window_handles[-1])
            driver.close()
        driver.switch_to.window(driver.window_handles[0])
        driver.get("about:blank")
        driver.get_log("browser")
        sized(driver, 1200, 900, False)
        return driver

    def close(self) -> None:
        self._driver = None
        self._open.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@pytest.fixture
def browse(browser: Browser) -> Browse:
    """What runs `work(driver)` in a thread, with one empty tab.  What the browser complains of,
    such as something that the page's own policy forbids, fails the test.
    """

    def run(work: Callable[[Any], None]) -> None:
        driver = browser.tidy()
        work(driver)
        said = [one["message"] for one in driver.get_log("browser")]
        assert [one for one in said if "favicon" not in one and "status of 4" not in one] == []

    async def in_thread(work: Callable[[Any], None]) -> None:
        await trio.to_thread.run_sync(run, work)

    return in_thread


@pytest.fixture
async def hq(enrolled: Path, tmp_path: Path) -> AsyncIterator[RealHq]:
    """A lab and a center have joined."""
    async with real_hq(tmp_path, like=enrolled) as found:
        yield found


@pytest.fixture
async def lab(hq: RealHq) -> AsyncIterator[Web]:
    """The page of FL-LAB."""
    async with page_of(hq.home("FL-LAB")) as found:
        yield found


@pytest.fixture
async def center(hq: RealHq) -> AsyncIterator[Web]:
    """The page of CA-RC."""
    async with page_of(hq.home("CA-RC")) as found:
        yield found
