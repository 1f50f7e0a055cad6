"""The labs scenario: participants, routes, and the four files that the demo creates.

Contents are random where they carry data, so that no run of their bytes occurs by chance.
"""

from __future__ import annotations

import random
import zlib
from typing import NamedTuple

EXCHANGE = "lab_exchange"
QUEUES = {"CA-RC": "ca_rc_queue", "NY-RC": "ny_rc_queue", "SF-RC": "sf_rc_queue"}
LABS = ("FL-LAB", "PA-LAB", "MA-LAB", "IL-LAB")
# A topic exchange: * is one word of the routing key, # any number of words.
BINDINGS = (
    ("ca_rc_queue", "fl.data"),
    ("ca_rc_queue", "*.report"),
    ("ny_rc_queue", "pa.report"),
    ("ny_rc_queue", "ma.data"),
    ("sf_rc_queue", "#"),
)


class Item(NamedTuple):
    """The item that one lab sends."""

    name: str
    file: str
    sender: str
    key: str
    recipients: tuple[str, ...]
    content: bytes


def make_items(seed: int) -> list[Item]:
    """Return the four items; the same seed gives the same bytes."""
    chance = random.Random(seed)  # noqa: S311 - test data, no secret
    return [
        Item(
            "FL-LAB_DAT_20251008_001",
            "FL-LAB_DAT_20251008_001.csv",
            "FL-LAB",
            "fl.data",
            ("CA-RC", "SF-RC"),
            measurements(chance),
        ),
        Item(
            "PA-LAB_RPT_20251008_125",
            "PA-LAB_RPT_20251008_125.hl7",
            "PA-LAB",
            "pa.report",
            ("CA-RC", "NY-RC", "SF-RC"),
            lab_report(chance),
        ),
        Item(
            "MA-LAB_DAT_20251008_045",
            "MA-LAB_DAT_20251008_045.json",
            "MA-LAB",
            "ma.data",
            ("NY-RC", "SF-RC"),
            document(chance),
        ),
        Item(
            "IL-LAB_RPT_20251008_175",
            "IL-LAB_RPT_20251008_175.pdf",
            "IL-LAB",
            "il.report",
            ("CA-RC", "SF-RC"),
            paper(chance, 3_500_000),
        ),
    ]


def measurements(chance: random.Random) -> bytes:
    """Return a CSV file of 4,000 measurements, about 240 KB."""
    lines = ["sample,taken_at,analyte,value,unit,instrument,operator"]
    analytes = (
        ("Glucose", "mmol/L", 5.2),
        ("Sodium", "mmol/L", 140.0),
        ("CRP", "mg/L", 3.1),
        ("Ferritin", "ug/L", 80),
    )
    for number in range(4000):
        name, unit, middle = analytes[number % len(analytes)]
        value = chance.gauss(middle, middle / 9)
        hour, minute, second = chance.randrange(24), chance.randrange(60), chance.randrange(60)
        clock = f"2025-10-08T{hour:02}:{minute:02}:{second:02}Z"
        sample = f"FL{chance.randrange(10**8):08}"
        lines.append(f"{sample},{clock},{name},{value:.4f},{unit},A{number % 7},op{number % 11}")
    return ("\r\n".join(lines) + "\r\n").encode()


def lab_report(chance: random.Random) -> bytes:
    """Return an HL7 v2.5.1 ORU^R01 report with 30 results and a note in other alphabets."""
    number = chance.randrange(10**9)
    segments = [
        "MSH|^~\\&|LIS|PA-LAB|EHR|DC-HQ|20251008091500||ORU^R01^ORU_R01|"
        f"{number:09}|P|2.5.1|||||USA|UNICODE UTF-8",
        f"PID|1||{chance.randrange(10**8):08}^^^PA-LAB^MR||Doe^Jane^Q||19800101|F",
        f"OBR|1|{number}|{number + 1}|24323-8^Comprehensive metabolic panel^LN|||20251008084500",
    ]
    for index in range(1, 31):
        value = chance.uniform(1, 200)
        segments.append(
            f"OBX|{index}|NM|{2000 + index}-{index % 10}^Analyte {index}^LN||{value:.3f}|mmol/L|"
            f"1.0-150.0|{'H' if value > 150 else 'N'}|||F|||20251008090{index % 10}00"
        )
    segments.append(
        "NTE|1|L|Näheres auf Anfrage; подробности по запросу; 詳細はお問い合わせください"
    )
    return ("\r".join(segments) + "\r").encode()


def document(chance: random.Random) -> bytes:
    """Return a JSON document of about 150 KB."""
    import json

    runs = [
        {
            "run": number,
            "sequence": "".join(chance.choices("ACGT", k=600)),
            "quality": [chance.randrange(20, 41) for _ in range(60)],
            "passed": chance.random() > 0.05,
        }
        for number in range(180)
    ]
    text = json.dumps(
        {"id": "MA-LAB_DAT_20251008_045", "study": "Überblick 2025", "runs": runs},
        ensure_ascii=False,
    )
    return text.encode()


def paper(chance: random.Random, size: int) -> bytes:
    """Return a PDF-like file of about ``size`` bytes: a header, a compressed stream with every
    byte value, a trailer.
    """
    picture = chance.randbytes(size)
    stream = zlib.compress(picture, 1)
    head = (
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /XObject /Subtype /Image /Filter "
        b"/FlateDecode /Length "
    )
    return (
        head
        + str(len(stream)).encode()
        + b" >>\nstream\n"
        + stream
        + b"\nendstream\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
    )
