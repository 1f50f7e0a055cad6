"""Pictures of each page, light and dark, wide and narrow: `make screenshots`.

.venv/bin/python -m tests.page.screenshots [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from cipherbox.client.receiving.receiver import Receiver
from tests.client.real_hq import RealHq, real_hq
from tests.page.chromium import chromium, log_in, sized
from tests.page.web import Web, page_of

SHAPES = {"wide": (1200, 800), "narrow": (360, 740)}
TEXTS = (
    ("FL-LAB", "Sample 17 is ready: 17.3 mg/l, see the attached spectra."),
    ("NY-RC", "Thank you. We start the comparison on Monday."),
    ("FL-LAB", "The centrifuge in room 4 is calibrated again; runs 42 to 45 were repeated."),
)


@asynccontextmanager
async def filled(path: Path) -> AsyncIterator[tuple[RealHq, Web, Web]]:
    """An HQ with people who wrote to each other; the page of CA-RC and that of the admin."""
    async with real_hq(path) as hq:
        await hq.join("FL-LAB", "CA-RC", "NY-RC", "SF-RC")
        async with hq.admin() as admin:
            await admin.declare_exchange("lab_reports", "topic")
            for reader in ("CA-RC", "NY-RC", "SF-RC"):
                name = f"{reader.lower().replace('-', '_')}_queue"
                await admin.declare_queue(name, owner=reader, readers=[reader])
                await admin.bind("lab_reports", name, "labs.#" if reader == "CA-RC" else "labs.fl")
            await admin.enrol("UT-LAB", approve=True)
            async with hq.client("FL-LAB") as client:
                await client.publish(TEXTS[0][1], to=["NY-RC"])
            await admin.purge("box.NY-RC")
        for sender, text in TEXTS:
            async with hq.client(sender) as client:
                await client.publish(text, to=["CA-RC"])
        async with page_of(hq.home("CA-RC")) as web:
            await web.until("/messages", lambda page: page.words.count("Receipt signed") == 3)
            await web.until("/people", lambda page: "FL-LAB" in page.words)
            for to in (["FL-LAB"], ["FL-LAB", "NY-RC"]):
                await web.post("/write", {"to": to, "text": "Received, thank you."})
            await web.ask("PUT", "/upload?to=FL-LAB&path=spectra-17.csv", b"x,y\n" * 90_000)
            async with hq.client("FL-LAB") as client:
                await Receiver(client).drain()
            await web.until("/sent", lambda page: "✓ opened" in page.words)
            async with page_of(hq.admin_home) as admin_web:
                yield hq, web, admin_web


PAGES = {
    "messages": "/messages",
    "sent": "/sent",
    "write": "/write?to=FL-LAB",
    "people": "/people",
    "person": "/people/FL-LAB",
    "trouble": "/trouble",
    "proof": "/proof",
    "settings": "/settings",
    "manual": "/manual/quickstart",
}
CONSOLE = {
    "console": "/console",
    "routes": "/console/routes",
    "clients": "/console/clients",
    "dead": "/console/dead",
    "hq": "/console/hq",
    "log": "/console/log",
}


def taken(folder: Path, web: Web, pages: dict[str, str]) -> None:
    """Take pictures of these pages, in each shape and colour scheme."""
    with chromium() as driver:
        sized(driver, *SHAPES["wide"], False)
        log_in(driver, web)
        for name, path in pages.items():
            for shape, (width, height) in SHAPES.items():
                for scheme in ("light", "dark"):
                    sized(driver, width, height, scheme == "dark")
                    driver.get(web.origin + path)
                    if name == "messages":
                        driver.execute_script("document.querySelector('details.text').open = true")
                    driver.save_screenshot(str(folder / f"{name}-{shape}-{scheme}.png"))


async def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        async with filled(Path(scratch)) as (_, web, admin):
            await trio.to_thread.run_sync(taken, folder, web, PAGES)
            await trio.to_thread.run_sync(taken, folder, admin, CONSOLE)


if __name__ == "__main__":
    into = Path(sys.argv[1] if len(sys.argv) > 1 else "build/screenshots")
    into.mkdir(parents=True, exist_ok=True)
    trio.run(main, into)
