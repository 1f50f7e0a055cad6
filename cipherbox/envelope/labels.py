"""Labels: domain separation between the uses of keys, hashes and signatures."""

from __future__ import annotations


def label(use: str) -> bytes:
    """Return the domain separator of one use. It ends in a zero byte, so none is a prefix of
    another.
    """
    return b"cipherbox/v1/" + use.encode() + b"\x00"
