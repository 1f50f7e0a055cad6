"""The page in a real browser: Debian's chromium, headless, where it is installed.

The browser runs in a thread, HQ and the page in this process.  What a browser complains of, such as
something that the page's own policy forbids, fails a test.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from selenium.common.exceptions import TimeoutException

from cipherbox.client.receiving.receiver import Receiver
from tests import soak
from tests.client.real_hq import RealHq
from tests.page.chromium import chromium, log_in, sized, until, why_not
from tests.page.screenshots import CONSOLE, PAGES, filled
from tests.page.web import Web, page_of

pytestmark = pytest.mark.skipif(
    bool(why_not()),
    reason=why_not() or "it is here",
)
CSS = "css selector"
# Links in a sentence, a check box with its label, and what a skip link shows only when focused.
SMALL = """
return [...document.querySelectorAll('button, .button, #nav a, summary, select, input, textarea')]
  .filter((one) => one.offsetParent !== null && !one.closest('.check') && one.type !== 'file')
  .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
  .filter(([, box]) => box.height < 24 || box.width < 24).map(([text]) => text)
"""


async def in_browser(work: Callable[[Any], None], **shape: Any) -> None:
    """Run ``work(driver)`` in a thread with a browser."""

    def run() -> None:
        with chromium(**shape) as driver:
            work(driver)
            said = [one["message"] for one in driver.get_log("browser")]
            assert [one for one in said if "favicon" not in one and "status of 4" not in one] == []

    await trio.to_thread.run_sync(run)


def one(driver: Any, selector: str) -> Any:
    return until(driver, lambda: driver.find_elements(CSS, selector))[0]


def text_of(driver: Any) -> str:
    return str(driver.find_element(CSS, "body").text)


def has(driver: Any, words: str) -> None:
    try:
        until(driver, lambda: words in text_of(driver))
    except TimeoutException:
        raise AssertionError(f"no {words!r} in {driver.current_url}: {text_of(driver)}") from None


async def test_two_people_and_one_message(lab: Web, center: Web, tmp_path: Path) -> None:
    """The seeds' story: log in, see the users, write, show and hide, read live in another tab."""
    folder = tmp_path / "run-42"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "b.txt").write_text("second")
    await lab.until("/people", lambda page: "CA-RC" in page.words)

    def story(driver: Any) -> None:
        log_in(driver, center)
        has(driver, "Nothing was received yet.")
        tab = driver.current_window_handle
        driver.switch_to.new_window("tab")
        log_in(driver, lab)
        driver.get(f"{lab.origin}/write")
        one(driver, "input[value='CA-RC']").click()
        one(driver, "textarea").send_keys("<img src=x onerror=alert(1)> Sample 17")
        one(driver, "#send").click()
        has(driver, "Sealed and kept on this machine.")
        sent = driver.current_window_handle
        driver.switch_to.window(tab)
        has(driver, "Show the text")  # without a click: it came as an event
        has(driver, "signature verified")
        assert "Sample 17" not in text_of(driver)
        summary = one(driver, "details.text summary")
        summary.send_keys("\ue007")  # by keyboard
        has(driver, "<img src=x onerror=alert(1)> Sample 17")
        has(driver, "Receipt signed")  # drawn anew meanwhile, and still shown
        assert "Sample 17" in text_of(driver)
        one(driver, "details.text summary").click()
        until(driver, lambda: "Sample 17" not in text_of(driver))
        driver.switch_to.window(sent)
        has(driver, "✓ opened")
        assert driver.execute_script("return document.cookie") == ""
        # a file dropped into the page, and a folder that is chosen
        driver.get(f"{lab.origin}/write?to=CA-RC")
        dropped(driver, 3_000_000)
        one(driver, "#folder").send_keys(str(folder))
        has(driver, "run-42/deep/b.txt")
        one(driver, "#send").click()
        until(driver, lambda: "/sent" in driver.current_url)
        has(driver, "result.bin")
        driver.switch_to.window(tab)
        for name in ("result.bin", "a.txt", "b.txt"):
            has(driver, name)
        one(driver, ".top button").click()  # Lock
        has(driver, "This page is locked.")
        driver.get(f"{center.origin}/messages")
        has(driver, "This page is locked.")
        checked(driver, lab, {**PAGES, "person": "/people/CA-RC"})

    await in_browser(story)


def dropped(driver: Any, size: int) -> None:
    """Drop a file of this size, as a file manager does."""
    driver.execute_script(
        """
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(arguments[0])], "result.bin"));
        document.getElementById("drop").dispatchEvent(
          new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        """,
        size,
    )


def checked(
    driver: Any, web: Web, pages: dict[str, str], schemes: Sequence[bool] = (False,)
) -> None:
    """Check each page by axe against WCAG 2.1 A and AA, its targets' sizes against 2.2, and that it
    is not wider than 360 pixels.
    """
    driver.switch_to.new_window("tab")
    log_in(driver, web)
    axe = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    wrong: dict[str, Any] = {}
    for dark in schemes:
        for name, path in pages.items():
            sized(driver, 360, 740, dark)
            driver.get(web.origin + path)
            width = driver.execute_script("return document.documentElement.scrollWidth")
            if width > 360:
                wrong[f"{name}: width"] = width
            if small := driver.execute_script(SMALL):
                wrong[f"{name}: targets"] = small
            driver.execute_script(axe)
            found = driver.execute_async_script(
                "const done = arguments[arguments.length - 1];"
                "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})"
                ".then((found) => done(found.violations), (error) => done([{id: String(error)}]))"
            )
            for violation in found:
                nodes = [node["html"][:90] for node in violation.get("nodes", [])][:3]
                wrong[f"{name}: {violation['id']} {'dark' if dark else 'light'}"] = nodes
    assert wrong == {}


@soak.only
async def test_every_page_in_both_colours(tmp_path: Path) -> None:
    async with filled(tmp_path) as (_, web, admin):

        def look(driver: Any) -> None:
            checked(driver, web, PAGES, (False, True))
            checked(driver, admin, CONSOLE, (False, True))

        await in_browser(look)


@soak.only
async def test_a_large_file_hq_away_and_back(hq: RealHq, lab: Web, tmp_path: Path) -> None:
    """200 MB by drag and drop while HQ is away: it waits in the outbox, and arrives whole."""
    await lab.until("/people", lambda page: "CA-RC" in page.words)
    async with hq.client("FL-LAB") as client:
        await client.bundles(["CA-RC"])
    size = 200_000_000
    await hq.stop()

    def drop(driver: Any) -> None:
        driver.set_script_timeout(120)
        log_in(driver, lab)
        has(driver, "HQ is unreachable")
        driver.get(f"{lab.origin}/write?to=CA-RC")
        dropped(driver, size)
        one(driver, "#send").click()
        until(driver, lambda: "/sent" in driver.current_url, 120)
        has(driver, "0 B of 200.0 MB with HQ")

    await in_browser(drop)
    await hq.start()
    async with hq.client("CA-RC", keep_trying=True) as client, trio.open_nursery() as nursery:
        receiver = Receiver(client)
        nursery.start_soon(receiver.keep)
        with trio.fail_after(120):
            while not receiver.files:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    (line,) = hq.lines("CA-RC")
    assert line["content"]["size"] == size
    assert (await trio.Path(line["content"]["file"]).stat()).st_size == size


@soak.only
async def test_the_console_asks_once(hq: RealHq) -> None:
    async with page_of(hq.admin_home) as admin:

        def revoke(driver: Any) -> None:
            log_in(driver, admin)
            has(driver, "HQ is ready")
            driver.get(f"{admin.origin}/console/clients")
            has(driver, "FL-LAB")
            card = next(
                found
                for found in driver.find_elements(CSS, "article.card")
                if "FL-LAB" in found.text
            )
            button = card.find_element(CSS, "form button")
            assert not button.is_displayed()
            card.find_element(CSS, "summary").click()
            assert "Only a new enrolment brings it back." in card.text
            button.click()
            has(driver, "The client was revoked")

        await in_browser(revoke)
