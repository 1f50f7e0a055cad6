"""Describe what happened to a client's keys since they were pinned, for the person who has to
decide.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from cipherbox.client.keys.pins import Pin
from cipherbox.envelope.bundle import KeyBundle, check_succession, fingerprint
from cipherbox.errors import BundleDiscontinuous, BundleError


class Change(NamedTuple):
    """What happened, as text (empty: nothing). ``broken``: the pinned keys did not sign the new
    ones.
    """

    text: str = ""
    broken: bool = False


def change_of(pin: Pin, found: Sequence[KeyBundle], entry: int = 0) -> Change:
    """Return what happened since ``pin``. ``found`` has the bundles shown, the newest last;
    ``entry`` is the entry of HQ's log.
    """
    bundle = found[-1]
    if pin.bundle.hash == bundle.hash:
        return Change()
    name = bundle.client_id
    logged = f", in entry {entry} of HQ's log" if entry else ""
    try:
        check_succession(pin.bundle, [b for b in found if b.sequence > pin.bundle.sequence])
    except BundleError:
        anew = f" {name} declares a new beginning." if bundle.breaks_continuity else ""
        return Change(
            f"The keys of {name} changed, and the old key did not sign the new "
            f"one.{anew}\nPinned here:  bundle {pin.bundle.sequence}, {_compared(pin)}: "
            f"{pin.fingerprint}\nHQ shows:     bundle {bundle.sequence}, made on "
            f"{day(bundle.created_at)}{logged}\nEither {name} lost its keys and joined again, or "
            f"the key shown to you is false. Ask {name} which it is.",
            broken=True,
        )
    return Change(
        f"{name} has new keys since then, signed by the ones pinned here: bundle "
        f"{bundle.sequence}{logged}."
    )


def discontinuity_error(
    pin: Pin, shown: KeyBundle, why: str, entry: int = 0
) -> BundleDiscontinuous:
    """Return the error that stops a sender, with both fingerprints to compare."""
    name = shown.client_id
    logged = f", entry {entry} of its log" if entry else ""
    return BundleDiscontinuous(
        f"{why}. Pinned here: bundle {pin.bundle.sequence}, {_compared(pin)}, fingerprint "
        f"{pin.fingerprint}. HQ shows: bundle {shown.sequence} of "
        f"{day(shown.created_at)}{logged}, fingerprint {fingerprint(shown)}. Either {name} lost "
        "its keys and joined again, or the key shown to you is false; until this is resolved, "
        f"nothing is sealed for {name}"
    )


def _compared(pin: Pin) -> str:
    return f"compared on {day(pin.compared_at)}" if pin.compared_at else "never compared"


def day(ms: int) -> str:
    """Return a date for people."""
    try:
        return time.strftime("%Y-%m-%d", time.localtime(ms / 1000))
    except (ValueError, OverflowError, OSError):  # a bundle can state any time
        return f"{ms} ms"
