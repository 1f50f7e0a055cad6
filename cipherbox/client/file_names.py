"""Make safe file names from other parties' texts; nothing else may do so."""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICE = re.compile(
    r"(?i)(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?", re.DOTALL
)
_NAME_BYTES = 120
_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]{1,12}")
_PACKED = frozenset([".gz", ".bgz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".cbx", ".gpg", ".age"])


def safe_name(text: str, most: int = _NAME_BYTES) -> str:
    """Return a safe file name made from another party's text: one component, never hidden, never a
    device, 1 to ``most`` bytes.

    The name is NFC, so that one typed on a Mac is the same here; a name that must be cut keeps its
    suffixes.
    """
    name = unicodedata.normalize("NFC", text).replace("\\", "/").rsplit("/", 1)[-1]
    name = _UNSAFE.sub("_", "".join(c for c in name if c.isprintable()))
    name = name.strip(" .")
    if not name or _DEVICE.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) > most:
        stem, suffix = split_name(name)
        if len(suffix) * 2 > most:
            stem, suffix = name, ""
        stem = stem[:most]  # the text may have megabytes
        while len(stem.encode()) + len(suffix) > most:
            stem = stem[:-1]
        name = (stem.rstrip(" .") or "_") + suffix
    return name


def split_name(name: str) -> tuple[str, str]:
    """Return stem and suffix; the suffix includes the type of a compressed file (`.vcf.gz`)."""
    stem, dot, last = name.rpartition(".")
    suffix = dot + last
    if not stem or not _SUFFIX.fullmatch(suffix):
        return name, ""
    if suffix.lower() in _PACKED:
        inner, dot, before = stem.rpartition(".")
        if inner and not before.isdigit() and _SUFFIX.fullmatch(dot + before):
            return inner, dot + before + suffix
    return stem, suffix
