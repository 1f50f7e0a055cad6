"""Labels: what keeps one use of a key, a hash or a signature from every other."""

from __future__ import annotations


def label(use: str) -> bytes:
    """The domain separator of one use: never shared, never a prefix of another (it ends in a
    zero byte).
    """
    return b"cipherbox/v1/" + use.encode() + b"\x00"
