"""`cipherbox audit`: the log of a real HQ, whole at first, and then with an entry changed behind
HQ's back.
"""

import json
import sqlite3
from pathlib import Path

from .conftest import make_hq, serving, shell


def test_a_changed_entry_is_named(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    home = tmp_path / "FL-LAB"
    with serving(directory):
        token = shell("enroll", "FL-LAB", home=admin).out
        assert shell("join", home=home, stdin=token).code == 0
        sent = shell("send", "--to", "FL-LAB", "--json", "to myself", home=home)
        message_id = json.loads(sent.out)["message_ids"][0]
        for text in ("two", "three"):
            assert shell("send", "--to", "FL-LAB", text, home=home).code == 0
        shown = shell("status", message_id, home=home)
        assert "of its signed log" in shown.out
        whole = shell("audit", "verify", home=admin)
        assert whole.code == 0, whole.err
        assert "all signed, whole and in order" in whole.out
        shown = shell("audit", "show", "--last", "100", home=admin)
        assert f"FL-LAB  sent {message_id}" in shown.out
        assert "HQ  enrolled FL-LAB as client" in shown.out
        assert shell("audit", "verify", home=home).code == 1  # a lab may not
    db = sqlite3.connect(directory / "cipherbox.sqlite3")
    (entry, body) = db.execute("SELECT entry, body FROM log ORDER BY entry LIMIT 1").fetchone()
    db.execute(
        "UPDATE log SET body = ? WHERE entry = ?",
        (body[:-3] + bytes([body[-3] ^ 1]) + body[-2:], entry),
    )
    db.execute("DELETE FROM log WHERE entry = ?", (entry + 2,))
    db.commit()
    db.close()
    with serving(directory):
        broken = shell("audit", "verify", "--json", home=admin)
        assert broken.code == 1
        wrong = [one["entry"] for one in json.loads(broken.out)["wrong"]]
        assert wrong == [entry, entry + 2]
