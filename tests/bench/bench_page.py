"""First paint of the page's list in a browser, with few and with many messages in the home.

`python -m tests.bench.bench_page`; it needs chromium and chromium-driver.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from cipherbox.client.home import load_home
from cipherbox.client.inbox.schema import DATABASE
from cipherbox.client.receiving.receiver import Receiver
from tests.client.real_hq import real_hq
from tests.page.chromium import chromium, log_in, until, why_not
from tests.page.web import Web, fill, page_of

COUNTS, ROUNDS = (1_000, 100_000), 9
PAINT = "return performance.getEntriesByType('paint').map((one) => [one.name, one.startTime])"
ANSWER = """
const [one] = performance.getEntriesByType("navigation");
return one.responseEnd - one.requestStart;
"""


def measure(web: Web) -> list[tuple[float, float]]:
    """Milliseconds from the request to the answer, and to the first contentful paint."""
    found = []
    with chromium() as driver:
        log_in(driver, web)
        for _ in range(ROUNDS):
            driver.get(f"{web.origin}/messages")
            paints: dict[str, Any] = until(
                driver,
                lambda: (
                    found
                    if "first-contentful-paint" in (found := dict(driver.execute_script(PAINT)))
                    else None
                ),
            )
            found.append((driver.execute_script(ANSWER), paints["first-contentful-paint"]))
    return found


async def main() -> None:
    if why := why_not():
        print(f"not measured: {why}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        async with real_hq(Path(scratch)) as hq:
            await hq.join("FL-LAB", "CA-RC")
            path, had = hq.home("CA-RC"), 0
            async with hq.client("CA-RC") as client:
                await client.bundles(["FL-LAB"])
                await Receiver(client).drain()  # which makes the inbox
            for count in COUNTS:
                box = load_home(path).secret_box.content_box
                await trio.to_thread.run_sync(fill, path / DATABASE, box, count - had, 1)
                had = count
                async with page_of(path) as web:
                    began = time.process_time()
                    found = await trio.to_thread.run_sync(measure, web)
                    cpu_ms = 1000 * (time.process_time() - began) / ROUNDS
                answers, paints = zip(*found, strict=True)
                print(
                    f"{count:>7} messages: answer {statistics.median(answers):.0f} ms, first paint "
                    f"{statistics.median(paints):.0f} ms (most {max(paints):.0f}), "
                    f"CPU of the page {cpu_ms:.0f} ms"
                )


if __name__ == "__main__":
    trio.run(main)
