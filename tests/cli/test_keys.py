"""`keys` where no HQ is needed."""

from __future__ import annotations

import json
from pathlib import Path

from cipherbox.client.keys.pins import PERSON, Pins
from cipherbox.envelope.bundle import BundleKey, decode_bundle
from tests.cli.conftest import Run
from tests.envelope.test_bundle import LAB_KEYS, crafted


def test_keys_of_kinds_from_the_future_are_shown(cipherbox: Run, tmp_path: Path) -> None:
    keys = [*LAB_KEYS, BundleKey(1, 77, b"new"), BundleKey(2, 78, b"newer")]
    Pins(tmp_path).accept(decode_bundle(crafted(keys=keys)), PERSON)
    shown = cipherbox("--home", str(tmp_path), "keys", "show", "FL-LAB", "--json")
    assert shown.code == 0, shown.err
    assert [key["kind"] for key in json.loads(shown.out)["keys"]] == [
        "hpke-mlkem768-x25519",
        "hpke-x25519",
        "unknown (77)",
        "ed25519",
        "unknown (78)",
    ]
