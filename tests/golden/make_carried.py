"""Golden files of what is carried to a CA and back: its directory, the requests, the answer."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cipherbox import clock, pki
from cipherbox.portable import write_private
from cipherbox.sealing import key_file as keyfile
from cipherbox.server.ca.offline import (
    CA_KEY,
    ISSUING,
    ISSUING_KEY,
    ROOT,
    ROOT_KEY,
    OfflineCa,
    sign_offline,
)
from cipherbox.server.ca.requests_document import HQ_NAME, HQ_ROLE, request_row, requests_document
from tests.golden import files

PASSWORD = "the root of all"
KEY = bytes(range(32))


def main() -> None:
    root = pki.new_root("DC-HQ")
    issuing = pki.new_issuing("DC-HQ", root)
    fingerprint = pki.fingerprint(root.certificate)
    now = clock.now_ms()
    rows = [
        request_row("FL-LAB", "client", pki.make_csr(pki.new_key(), "FL-LAB"), fingerprint, now),
        request_row(HQ_NAME, HQ_ROLE, pki.make_csr(pki.new_key(), "DC-HQ"), fingerprint, now),
    ]
    when = datetime(2026, 1, 2, tzinfo=UTC)
    requests = requests_document(rows, "DC-HQ", fingerprint, [("ab12", when)], 7)
    content = {
        CA_KEY: keyfile.encrypt(KEY, password=PASSWORD.encode()),
        ROOT: pki.pem(root.certificate),
        ISSUING: pki.pem(issuing.certificate),
        ROOT_KEY: pki.key_pem(root.key, KEY),
        ISSUING_KEY: pki.key_pem(issuing.key, KEY),
    }
    with tempfile.TemporaryDirectory() as where:
        for name, data in content.items():
            write_private(Path(where, name), data)
        signed = sign_offline(OfflineCa(Path(where), KEY), requests)
    files.write(
        "carried",
        {
            "made_at": pki.ms(clock.now()),
            "password": PASSWORD,
            "ca_key": KEY.hex(),
            "directory": {name: data.hex() for name, data in content.items()},
            "numbers": {row.client: row.number for row in rows},
            "revoked": ["ab12", pki.ms(when)],
            "crl_number": 7,
            "requests.json": requests.decode(),
            "signed.json": signed.decode(),
        },
    )
