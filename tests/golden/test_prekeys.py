"""The program itself on golden prekeys that must not be believed: it names the failure that the
file names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cipherbox.envelope import prekeys
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.errors import BundleError

DOCUMENT = json.loads((Path(__file__).parent / "sessions.json").read_text())


@pytest.mark.parametrize("row", DOCUMENT["fails"], ids=lambda r: f"{r['part']} {r['name']}")
def test_prekeys_that_must_not_be_believed(row: dict[str, str]) -> None:
    sign = decode_bundle(bytes.fromhex(DOCUMENT["bundle"])).sign_keys
    read: Any = prekeys.decode if row["part"] == "signed" else prekeys.decode_once

    def believe() -> None:
        prekeys.check(read(bytes.fromhex(row["prekeys"])), "CA-RC", sign)

    with pytest.raises(BundleError) as caught:
        believe()
    assert caught.value.name == row["error"]
