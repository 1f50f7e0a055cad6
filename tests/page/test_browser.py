"""The page in a real browser: Debian's chromium, headless, where it is installed.

The browser runs in a thread, HQ and the page in this process.  What a browser complains of, such as
something that the page's own policy forbids, fails a test.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from cipherbox.apps.page import desk
from cipherbox.client.keys.comparing import scan_text
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.bundle import fingerprint
from tests import soak
from tests.client.real_hq import RealHq
from tests.page import codes
from tests.page.chromium import log_in, show, sized, until, why_not
from tests.page.conftest import Browse
from tests.page.screenshots import CONSOLE, PAGES, filled
from tests.page.web import Web, page_of

pytestmark = pytest.mark.skipif(
    bool(why_not()),
    reason=why_not() or "it is here",
)
CSS = "css selector"
NUMBER = "21253 26010 71488 26567 94011 30985"
WIDTH = "return document.documentElement.scrollWidth"
TAB, ENTER, SPACE = Keys.TAB, Keys.ENTER, Keys.SPACE
# What axe finds against WCAG 2.2, A and AA; it leaves out the size of targets unless it is asked.
AXE = """
const done = arguments[arguments.length - 1];
const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
axe.run(document, { runOnly: tags, rules: { "target-size": { enabled: true } } })
  .then(
    (found) => done([
      ...found.violations.map((one) => [one.id, one.nodes.slice(0, 3).map((node) => node.html)]),
      ...(found.passes.some((one) => one.id === "target-size") ? [] : [["target-size", "no run"]]),
    ]),
    (error) => done([[String(error), []]]));
"""


def one(driver: Any, selector: str) -> Any:
    return until(driver, lambda: driver.find_elements(CSS, selector))[0]


def text_of(driver: Any) -> str:
    return str(driver.find_element(CSS, "body").text)


def has(driver: Any, words: str) -> None:
    try:
        until(driver, lambda: words in text_of(driver))
    except TimeoutException:
        raise AssertionError(f"no {words!r} in {driver.current_url}: {text_of(driver)}") from None


async def test_two_people_and_one_message(
    lab: Web, center: Web, tmp_path: Path, browse: Browse
) -> None:
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
        checked(driver, lab, {"person": "/people/CA-RC"})  # all others in `make soak`
        for seen in codes.PLAIN:
            assert codes.read(driver, NUMBER, seen) == NUMBER, seen

    await browse(story)


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
    driver: Any,
    web: Web,
    pages: dict[str, str],
    schemes: Sequence[bool] = (False,),
    widths: Sequence[int] = (360,),
) -> None:
    """Check each page by axe, with all that can be opened open, and that none is too wide."""
    driver.switch_to.new_window("tab")
    log_in(driver, web)
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    wrong: dict[str, Any] = {}
    for name, path in pages.items():
        driver.get(web.origin + path)
        driver.execute_script(axe)
        driver.execute_script(
            "for (const one of document.querySelectorAll('details')) one.open = 1"
        )
        for width in widths:
            for dark in schemes:
                sized(driver, width, 800, dark)
                where = f"{name}, {width}, {'dark' if dark else 'light'}"
                if (found := driver.execute_script(WIDTH)) > width:
                    wrong[where] = found
                for rule, nodes in driver.execute_async_script(AXE):
                    wrong[f"{where}: {rule}"] = nodes
    assert not wrong, json.dumps(wrong, indent=1)


@soak.only
async def test_every_page_in_both_colours_and_widths(tmp_path: Path, browse: Browse) -> None:
    async with filled(tmp_path) as (_, web, admin):
        more = {}
        for kind in ("messages", "sent"):
            found = re.search(rf'href="(/{kind}/[-0-9a-f]{{36}})', (await web.get(f"/{kind}")).text)
            assert found is not None
            more[kind[:-1]] = found[1]

        def look(driver: Any) -> None:
            for there, pages in ((web, PAGES | more), (admin, CONSOLE)):
                checked(driver, there, pages, (False, True), (360, 1200))

        await browse(look)


@soak.only
async def test_a_large_file_hq_away_and_back(hq: RealHq, lab: Web, browse: Browse) -> None:
    """200 MB by drag and drop while HQ is away: it waits in the outbox, and arrives whole."""
    await lab.until("/people", lambda page: "CA-RC" in page.words)
    async with hq.client("FL-LAB") as client:
        await client.bundles(["CA-RC"])
    size = 200_000_000
    await hq.stop()
    before = most_memory(anew=True)

    def drop(driver: Any) -> None:
        driver.set_script_timeout(120)
        log_in(driver, lab)
        has(driver, "HQ is unreachable")
        driver.get(f"{lab.origin}/write?to=CA-RC")
        dropped(driver, size)
        one(driver, "#send").click()
        until(driver, lambda: "/sent" in driver.current_url, 120)
        has(driver, "0 B of 200.0 MB with HQ")

    await browse(drop)
    assert most_memory() - before < 64_000_000
    await hq.start()
    async with hq.client("CA-RC", keep_trying=True) as client, trio.open_nursery() as nursery:
        receiver = Receiver(client)
        nursery.start_soon(receiver.keep)
        with trio.fail_after(300):
            while not receiver.files:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    (line,) = hq.lines("CA-RC")
    assert line["content"]["size"] == size
    assert (await trio.Path(line["content"]["file"]).stat()).st_size == size


@soak.only
async def test_hq_goes_away_and_comes_back(hq: RealHq, lab: Web, browse: Browse) -> None:
    """The page says so without a click, and what was written meanwhile arrives."""
    await lab.until("/people", lambda page: "CA-RC" in page.words)
    outside = trio.lowlevel.current_trio_token()

    def story(driver: Any) -> None:
        log_in(driver, lab)
        has(driver, "Connected to HQ")
        trio.from_thread.run(hq.stop, trio_token=outside)
        has(driver, "HQ is unreachable")
        driver.get(f"{lab.origin}/write?to=CA-RC")
        one(driver, "textarea").send_keys("while it was away")
        one(driver, "#send").click()
        has(driver, "… sealed")
        trio.from_thread.run(hq.start, trio_token=outside)
        has(driver, "Connected to HQ")
        has(driver, "↑ with HQ")

    await browse(story)


@soak.only
async def test_tabs_of_one_home(lab: Web, center: Web, browse: Browse) -> None:
    """More tabs than a browser has connections: all are live and can act, and one stream serves
    them; locking one locks all.
    """
    await lab.until("/people", lambda page: "CA-RC" in page.words)

    def story(driver: Any) -> None:
        log_in(driver, center)
        tabs = [driver.current_window_handle]
        for _ in range(7):
            driver.switch_to.new_window("tab")
            driver.get(f"{center.origin}/messages")
            tabs.append(driver.current_window_handle)
        has(driver, "Nothing was received yet.")
        inside = center.page.site.desk
        assert inside is not None
        until(driver, lambda: inside.listeners == 1)
        driver.switch_to.new_window("tab")
        log_in(driver, lab)
        for at, tab in enumerate(tabs):
            driver.get(f"{lab.origin}/write?to=CA-RC")
            one(driver, "textarea").send_keys(f"number {at}")
            one(driver, "#send").click()
            has(driver, "Sealed and kept")
            mine = driver.current_window_handle
            driver.switch_to.window(tab)
            until(driver, lambda at=at: len(driver.find_elements(CSS, "details.text")) == at + 1)
            if at == 2:  # the one that listened is closed: another one listens
                driver.switch_to.window(tabs[0])
                driver.get("about:blank")
            driver.switch_to.window(mine)
        for tab in tabs[1:3]:
            driver.switch_to.window(tab)
            driver.get(f"{center.origin}/write?to=FL-LAB")
            one(driver, "textarea").send_keys("an answer")
            one(driver, "#send").click()
            has(driver, "Sealed and kept")
        one(driver, ".top button").click()
        for tab in tabs[1:]:
            driver.switch_to.window(tab)
            has(driver, "This page is locked.")

    await browse(story)


@soak.only
async def test_keys_that_changed(
    hq: RealHq, lab: Web, browse: Browse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alarm comes without a click; nothing is sent until the keys are compared, first by a
    number read by telephone, then by a code.
    """
    for name, value_s in (("ALARM_S", 5.0), ("PEOPLE_S", 4.0), ("HQ_S", 45.0)):
        monkeypatch.setattr(desk, name, value_s)
    async with hq.client("FL-LAB") as client:
        await client.bundles(["CA-RC"])
    outside = trio.lowlevel.current_trio_token()

    async def replaced() -> str:
        for path in hq.home("CA-RC").iterdir():
            if path.is_file():
                path.unlink()
        await hq.join("CA-RC", replace=True)
        async with hq.client("CA-RC") as client:
            return scan_text(client.home.identity.bundle)

    def story(driver: Any) -> None:
        log_in(driver, lab)
        has(driver, "Connected to HQ")
        code = trio.from_thread.run(replaced, trio_token=outside)
        has(driver, "The keys of CA-RC changed, and the old keys did not sign the new ones.")
        assert one(driver, "#alarms [role=alert]").is_displayed()
        driver.get(f"{lab.origin}/write?to=CA-RC")
        assert not one(driver, "input[value='CA-RC']").is_enabled()
        driver.get(f"{lab.origin}/people")
        driver.find_element("link text", "Compare the keys").click()
        number = code.split(" ", 3)[3]
        one(driver, "#heard").send_keys(number[:-1] + "x")
        one(driver, "#heard").submit()
        has(driver, "What to do:")
        has(driver, "The keys of CA-RC changed")
        one(driver, "#heard").clear()
        one(driver, "#heard").send_keys(number.replace(" ", ""))  # as a person types it
        one(driver, "#heard").submit()
        has(driver, "They agree.")
        assert "The keys of CA-RC changed" not in text_of(driver)
        # and once more: the code, held in front of the camera; then a picture of their page
        code = trio.from_thread.run(replaced, trio_token=outside)
        has(driver, "The keys of CA-RC changed")
        driver.get(f"{lab.origin}/people/CA-RC")
        show(driver, code)
        one(driver, "#camera").click()
        has(driver, "They agree.")

    await browse(story)
    await replaced()
    picture = tmp_path / "theirs.png"

    def by_picture(driver: Any) -> None:
        log_in(driver, theirs)
        driver.get(f"{theirs.origin}/people")
        driver.save_screenshot(str(picture))
        log_in(driver, lab)
        has(driver, "The keys of CA-RC changed")
        no_code = driver.get_screenshot_as_png()
        driver.get(f"{lab.origin}/people/CA-RC")
        one(driver, "#picture").send_keys(str(picture))
        has(driver, "They agree.")
        for wrong in (no_code, b"no picture"):
            picture.write_bytes(wrong)
            driver.get(f"{lab.origin}/people/CA-RC")
            one(driver, "#picture").send_keys(str(picture))
            has(driver, "There is no code in this picture.")

    async with page_of(hq.home("CA-RC")) as theirs:
        await browse(by_picture)


@soak.only
async def test_codes_are_read_as_a_camera_sees_them(lab: Web, browse: Browse) -> None:
    """Turned, tilted, small, noisy and damaged ones, of each size and level that may occur; and
    what is none is not read as one.
    """

    def look(driver: Any) -> None:
        log_in(driver, lab)
        driver.get(f"{lab.origin}/people/CA-RC")
        wrong = []
        for name in ("A", "CA-RC", "B" * 63):
            text = f"CipherBox {name} 12 {NUMBER}"
            for error in "lmqh" if name == "CA-RC" else "m":
                for seen in codes.HARD:
                    if (found := codes.read(driver, text, seen, error)) != text:
                        wrong.append((name, error, seen, found))
        assert wrong == []
        for text in (NUMBER.replace(" ", ""), "HTTPS://EXAMPLE.ORG/A:B"):  # digits; letters
            assert codes.read(driver, text, codes.PLAIN[0]) == text
        assert codes.read(driver, NUMBER, codes.Seen(damaged=20)) is None
        assert codes.read(driver, NUMBER, codes.Seen(module=0.5)) is None

    await browse(look)


# What has the focus: its name, whether it can be seen, and whether something lies upon it.
FOCUSED = """
const one = document.activeElement, box = one.getBoundingClientRect();
const x = box.left + Math.min(box.width, 60) / 2, y = box.top + box.height / 2;
const over = document.elementFromPoint(x, y), style = getComputedStyle(one);
const pick = one.closest(".pick");
return {
  tag: one.tagName, text: (one.textContent || one.value || "").trim().slice(0, 40),
  free: over !== null && (one === over || one.contains(over) || over.contains(one)),
  ring: parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== "none"
    || pick !== null && parseFloat(getComputedStyle(pick).outlineWidth) >= 2,
};
"""


def tab_to(driver: Any, wanted: Callable[[Any], bool], most: int = 60) -> Any:
    """Press Tab until an element has the focus; each one on the way has a name, a ring, and nothing
    upon it (WCAG 2.2: 2.1.1, 2.4.7, 2.4.11, 4.1.2).
    """
    for _ in range(most):
        ActionChains(driver).send_keys(TAB).perform()
        found = driver.execute_script(FOCUSED)
        active = driver.switch_to.active_element
        if found["tag"] == "BODY":
            continue
        assert found["free"], found
        assert found["ring"], found
        assert active.accessible_name, (found, active.get_attribute("outerHTML")[:200])
        if wanted(active):
            return active
    raise AssertionError(f"Tab does not reach it in {driver.current_url}")


def named(name: str) -> Callable[[Any], bool]:
    return lambda element: element.accessible_name.startswith(name)


@soak.only
@pytest.mark.parametrize("width", [1200, 360])
async def test_by_keyboard_alone(lab: Web, center: Web, browse: Browse, width: int) -> None:
    """Log in, write, read, show and hide, compare, lock: with Tab, Space and Enter."""
    await lab.until("/people", lambda page: "CA-RC" in page.words)

    def story(driver: Any) -> None:
        sized(driver, width, 740, False)
        driver.get(f"{lab.origin}/enter")
        driver.switch_to.active_element.send_keys(lab.page.door.code, ENTER)  # it has the focus
        until(driver, lambda: "/messages" in driver.current_url)
        tab_to(driver, named("Write")).send_keys(ENTER)
        until(driver, lambda: "/write" in driver.current_url)
        tab_to(driver, named("Skip to the content")).send_keys(ENTER)
        tab_to(driver, named("CA-RC")).send_keys(SPACE)
        tab_to(driver, named("Text")).send_keys("by keyboard")
        tab_to(driver, named("Seal and send")).send_keys(ENTER)
        has(driver, "✓ opened")
        driver.get(f"{center.origin}/enter")
        driver.switch_to.active_element.send_keys(center.page.door.code, ENTER)
        has(driver, "Show the text")
        shown = tab_to(driver, named("Show the text"))
        shown.send_keys(ENTER)
        has(driver, "by keyboard")
        shown.send_keys(ENTER)
        until(driver, lambda: "by keyboard" not in text_of(driver))
        driver.get(f"{center.origin}/people/FL-LAB")
        number = lab.page.site.desk.client.home.identity.bundle  # type: ignore[union-attr]
        tab_to(driver, named("The number that FL-LAB reads")).send_keys(fingerprint(number), ENTER)
        has(driver, "They agree.")
        tab_to(driver, named("Lock")).send_keys(ENTER)
        has(driver, "This page is locked.")

    await browse(story)


@soak.only
async def test_nothing_moves_for_those_who_ask_for_that(lab: Web, browse: Browse) -> None:
    def look(driver: Any) -> None:
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [calm]})
        log_in(driver, lab)
        for path in PAGES.values():
            driver.get(lab.origin + path.replace("FL-LAB", "CA-RC"))
            moving = driver.execute_script(
                "return [...document.querySelectorAll('*')].filter((one) => {"
                "const s = getComputedStyle(one); return parseFloat(s.transitionDuration) > 0"
                " || s.animationName !== 'none'; }).length"
            )
            assert moving == 0, path

    await browse(look)


def most_memory(*, anew: bool = False) -> int:
    """The most bytes that this process had resident, since the last call with ``anew``."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@soak.only
async def test_the_console_asks_once(hq: RealHq, browse: Browse) -> None:
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
            ask = card.find_elements(CSS, "details.ask")[-1]
            button = ask.find_element(CSS, "form button")
            assert not button.is_displayed()
            ask.find_element(CSS, "summary").click()
            assert "Only a new enrolment brings it back." in ask.text
            button.click()
            has(driver, "The client was revoked")

        await browse(revoke)
