"""The manual's queries on PostgreSQL with many messages: ``python -m tests.bench.bench_metadata
[ROWS]``.

Rows are envelopes of one message each, the worst case, spread over six months; one in ten thousand
still waits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

from cipherbox.store.postgres import schema
from cipherbox.store.postgres.store import PostgresStore
from tests import postgres

ROWS = 200_000
SPAN_S = 180 * 86_400
FILL = """
INSERT INTO envelopes SELECT n, CASE WHEN n % 10 = 0 THEN 'FL-LAB' ELSE 'LAB-' || n % 50 END,
    CAST(lpad(to_hex((t.ms)), 12, '0') || '70008000' || lpad(to_hex(n), 8,
    '0') || '0000' AS uuid), 0, 1,
    '\\x00', '', '', t.ms, 0, to_timestamp(t.ms / 1000.0), 1, 1000
FROM generate_series(CAST({first} AS bigint), {last}) AS n,
    LATERAL (SELECT CAST({began} + n * {step} AS bigint) AS ms) t;
INSERT INTO deliveries SELECT accepted_at, number, 1, number, 1, accepted_at, accepted_at,
'CA-RC' FROM envelopes
WHERE number BETWEEN {first} AND {last} AND number % 10000 <> 0;
INSERT INTO entries SELECT 1, number, number, accepted_at, 0, 0, NULL, '', 1000, 1, 0, sender,
envelope_id FROM
envelopes WHERE number BETWEEN {first} AND {last} AND number % 10000 = 0
"""


def queries() -> list[str]:
    page = resources.files("cipherbox").joinpath("manual", "store.md").read_text("utf-8")
    return [part.split("```")[0].strip() for part in page.split("```postgresql\n")[1:]]


def main(rows: int) -> None:
    server = postgres.new_server()
    try:
        server.start("shared_buffers=512MB", "max_wal_size=4GB", "synchronous_commit=off")
        store = PostgresStore(postgres.target(server), Path(tempfile.mkdtemp()), create=True)
        connection = store._writer()
        connection.script(
            "SET statement_timeout = 0; RESET enable_seqscan; RESET enable_hashjoin; RESET "
            "enable_mergejoin"
        )
        began = int(time.time() * 1000) - SPAN_S * 1000
        for month in range(schema.month_of(began), schema.month_of(began) + 8):
            schema.make_month(connection, month)
        connection.script(
            "INSERT INTO queues (queue_no, name, owner, readers) VALUES (1, 'box.CA-RC', "
            "'CA-RC', '[]')"
        )
        at = time.monotonic()
        for first in range(1, rows + 1, 500_000):
            last = min(first + 499_999, rows)
            connection.script(
                FILL.format(first=first, last=last, began=began, step=SPAN_S * 1000 / rows)
            )
        connection.script("VACUUM ANALYZE")
        print(f"{rows:,} rows made in {time.monotonic() - at:.0f} s")
        some = connection.script(f"SELECT envelope_id FROM envelopes WHERE number = {rows // 3}")[
            0
        ][0]
        other = postgres.connect(server)
        for query in queries():
            query = query.replace("019a8c3e-0b1e-7000-8000-012345670003", str(some))
            times = []
            for _ in range(5):
                at = time.perf_counter()
                found = other.script(query.rstrip(";"))
                times.append((time.perf_counter() - at) * 1000)
            if min(times) > 20:
                print(
                    "\n".join(
                        row[0] for row in other.script(f"EXPLAIN ANALYZE {query.rstrip(';')}")
                    )
                )
            print(
                f"{min(times):8.2f} ms (first {times[0]:.2f})  {len(found):3} rows  {query[:90]!r}"
            )
        other.close()
        store.close()
    finally:
        server.remove()


if __name__ == "__main__":
    main(int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else ROWS)
