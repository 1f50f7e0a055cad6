"""A headless Chromium for tests and screenshots, where this machine has one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import segno

from cipherbox.apps.page.door import read_address, write_opener
from tests.page.web import Web

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE_S = 180


def why_not() -> str:
    """Why no browser can be started here, or nothing."""
    if BROWSER is None or DRIVER is None:
        return "chromium and chromium-driver are not installed"
    return ""


@contextmanager
def chromium(*, width: int = 1200, height: int = 900, dark: bool = False) -> Iterator[Any]:
    """A browser of its own profile; blocks, so tests run it in a thread."""
    if why := why_not():
        pytest.skip(f"needs a browser: {why}")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for one in (
            "--headless=new",
            "--no-sandbox",  # tests run as root in containers
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-extensions",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            "--disable-features=Translate,MediaRouter,OptimizationHints,DialMediaRouteProvider",
            "--disable-smooth-scrolling",
            "--disable-background-networking",
            "--use-fake-device-for-media-stream",  # a camera that shows a file, see `show`
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-video-capture={profile}/camera.y4m",
            "--force-color-profile=srgb",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            *(["--force-dark-mode"] if dark else []),
        ):
            options.add_argument(one)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            driver.set_page_load_timeout(PATIENCE_S)
            driver.camera = Path(profile) / "camera.y4m"
            yield driver
        finally:
            driver.quit()


def sized(driver: Any, width: int, height: int, dark: bool) -> None:
    """Give the page exactly this size and colour scheme, as its media queries see them."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def show(driver: Any, text: str, scale: int = 6) -> None:
    """Hold a QR code of this text in front of the browser's camera, in uneven light."""
    width, height = 640, 480
    rows = list(segno.make(text, error="m", micro=False).matrix)
    left, top = (width - len(rows) * scale) // 2, (height - len(rows) * scale) // 2
    light = bytearray()
    for y in range(height):
        row = rows[(y - top) // scale] if 0 <= (y - top) // scale < len(rows) else ()
        for x in range(width):
            at = (x - left) // scale
            light.append((50 if 0 <= at < len(row) and row[at] else 140) + x // 8)
    colour = bytes([128]) * (width * height // 2)
    frame = b"FRAME\n" + bytes(light) + colour
    head = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode()
    driver.camera.write_bytes(head + 3 * frame)


def log_in(driver: Any, web: Web) -> None:
    """Open the page as the command does: by the local file with the code."""
    home = web.home
    assert home is not None
    address = read_address(home)
    assert address is not None
    driver.get(write_opener(address, home).as_uri())
    until(driver, lambda: driver.current_url.startswith("http") and driver.title != "CipherBox")
    until(driver, lambda: "/enter" not in driver.current_url)


def until(driver: Any, so: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Return what ``so`` returns once that is true."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(
        driver, patience_s, 0.05, ignored_exceptions=[StaleElementReferenceException]
    )
    return waiting.until(lambda _: so())
