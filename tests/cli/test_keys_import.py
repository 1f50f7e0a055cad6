"""`keys import` and `keys fingerprint`, in homes that joined a real HQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cipherbox.cli.exits import Exit
from cipherbox.client.enrol import join
from cipherbox.client.home import load_home
from cipherbox.client.keys.pins import Pins
from cipherbox.envelope.bundle import fingerprint
from tests.cli.conftest import Run
from tests.client.real_hq import real_hq
from tests.parties import Party, with_other_keys


@pytest.fixture
async def hq(tmp_path: Path) -> AsyncIterator[Any]:
    async with real_hq(tmp_path) as found:
        await found.join("FL-LAB", "CA-RC")
        yield found


def exported(hq: Any, cipherbox: Run, name: str, file: Path) -> str:
    assert cipherbox("--home", str(hq.home(name)), "keys", "export", str(file)).code == 0
    own = load_home(hq.home(name)).identity
    assert own is not None
    assert own.bundle is not None
    return fingerprint(own.bundle)


async def test_keys_that_the_pinned_ones_did_not_sign_need_their_number(
    hq: Any, cipherbox: Run, tmp_path: Path
) -> None:
    lab, file = str(hq.home("FL-LAB")), tmp_path / "center.keys"

    def imported(*words: str, stdin: str = "") -> Any:
        return cipherbox("--home", lab, "keys", "import", str(file), *words, stdin=stdin)

    def pinned() -> tuple[int, bool]:
        pin = Pins(hq.home("FL-LAB")).get("CA-RC")
        assert pin is not None
        return pin.bundle.sequence, bool(pin.compared_at)

    before = exported(hq, cipherbox, "CA-RC", file)
    assert imported("--fingerprint", before[::-1]).code == Exit.REFUSED
    assert imported("--yes").code == 0
    assert pinned() == (1, True)
    async with hq.client("CA-RC") as center:
        await center.key_lifecycle.rotate()
    exported(hq, cipherbox, "CA-RC", file)
    assert imported("--yes").code == 0  # the pinned keys signed these
    assert pinned() == (2, True)
    async with hq.admin() as admin:
        token = await admin.enrol("CA-RC", replace=True)
    await join(hq.home("CA-RC"), token)
    number = exported(hq, cipherbox, "CA-RC", file)
    unasked = imported("--yes")
    assert unasked.code != 0
    assert "The keys of CA-RC changed, and the old key did not sign the new one" in unasked.out
    assert "This file: " in unasked.out
    # the digits of before agree to nothing
    assert imported("--yes", "--fingerprint", before).code == Exit.REFUSED
    assert imported(stdin=f"{before}\n").code == Exit.REFUSED
    assert pinned() == (2, True)
    assert imported("--fingerprint", number).code == 0
    assert pinned() == (3, True)


async def test_a_file_that_hqs_ca_made_is_refused(hq: Any, cipherbox: Run, tmp_path: Path) -> None:
    """With CA-RC's real signing key, and encryption keys of its own."""
    home = load_home(hq.home("CA-RC"))
    assert home.identity is not None
    evil = with_other_keys(Party(home.identity, home.key, home.chain[0], None), chain=home.chain)  # type: ignore[arg-type]
    (tmp_path / "evil.keys").write_bytes(evil.raw)
    shown = cipherbox(
        "--home", str(hq.home("FL-LAB")), "keys", "import", str(tmp_path / "evil.keys"), "--yes"
    )
    assert shown.code == Exit.KEYS
    assert "put other keys beside those of CA-RC" in shown.err
    assert Pins(hq.home("FL-LAB")).get("CA-RC") is None


async def test_the_fingerprint_says_of_which_bundle_it_is(hq: Any, cipherbox: Run) -> None:
    shown = cipherbox("--home", str(hq.home("CA-RC")), "keys", "fingerprint")
    assert len(shown.out.split()) == 6
    assert "This is the number of key bundle 1 of CA-RC" in shown.err


async def test_a_replaced_home_says_so_without_asking_hq(
    hq: Any, cipherbox: Run, tmp_path: Path
) -> None:
    async with hq.admin() as admin:
        token = await admin.enrol("CA-RC", replace=True)
    await join(tmp_path / "new", token)
    old = str(hq.home("CA-RC"))
    # it has not met HQ since
    assert "was replaced" not in cipherbox("--home", old, "keys", "fingerprint").err
    with pytest.raises(Exception, match="another home was enrolled"):
        async with hq.client("CA-RC"):
            pass
    await hq.stop()
    for words in (("keys", "fingerprint"), ("outbox", "list"), ("keys", "list")):
        assert (
            "This home was replaced: another home was enrolled as CA-RC"
            in cipherbox("--home", old, *words).err
        )
    await hq.start()
    async with hq.admin() as admin:
        token = await admin.enrol("CA-RC", replace=True)
    await join(hq.home("CA-RC"), token)
    assert "was replaced" not in cipherbox("--home", old, "keys", "list").err
