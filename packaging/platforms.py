"""The machines the file is built for: what pip calls them, and what Python calls their system.

Intel Macs are missing: the last cryptography library with wheels for macOS on x86-64 is 48.0.1, and
HPKE with ML-KEM, which the default stanza is made of, needs 50.
"""

from __future__ import annotations

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_GLIBC = ("_2_28", "_2_27", "_2_26", "_2_24", "_2_17", "2014")
_MAC = ("11_0", "10_15", "10_14", "10_13", "10_12", "10_9")

# Named as `cipherbox.ops.unpack.platform_name` names a running machine; pip takes the first tag
# that has a wheel.
TAGS: dict[str, list[str]] = {
    "linux-x86_64": [f"manylinux{version}_x86_64" for version in _GLIBC],
    "linux-aarch64": [f"manylinux{version}_aarch64" for version in _GLIBC],
    "linux-musl-x86_64": ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"],
    "linux-musl-aarch64": ["musllinux_1_2_aarch64", "musllinux_1_1_aarch64"],
    "macos-arm64": [
        f"macosx_{version}_{kind}" for version in _MAC for kind in ("arm64", "universal2")
    ],
    "windows-amd64": ["win_amd64"],
}
SYSTEMS = {name: {"l": "linux", "m": "darwin", "w": "win32"}[name[0]] for name in TAGS}
