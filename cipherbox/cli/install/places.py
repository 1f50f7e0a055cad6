"""Target paths of `install`: the system's directories as root, else the user's home."""

from __future__ import annotations

import os
from pathlib import Path

from cipherbox.classes import frozen
from cipherbox.portable import WINDOWS

SERVER, CLIENT = "server", "client"
USER = "cipherbox"
AGENTS = Path("/var/lib/cipherbox-agent")  # a home each
SOCKETS = {"cipherbox.socket": "listen", "cipherbox-websocket.socket": "websocket_listen"}
MANIFEST = "install.json"


@frozen
class Places:
    """Absolute paths as the installed system sees them; `at` places them below ``root``, which is
    not / when building a package.
    """

    root: Path
    base: Path
    command: Path
    share: Path
    units: Path
    data: Path
    settings: Path
    system: bool

    def at(self, path: Path) -> Path:
        """Return where to write ``path``."""
        return self.root / path.relative_to(path.anchor) if self.root != Path(path.anchor) else path

    @property
    def real(self) -> bool:
        """Return whether this is the running system."""
        return self.root == Path(self.root.anchor)

    @property
    def current(self) -> Path:
        return self.base / "current"

    @property
    def previous(self) -> Path:
        return self.base / "previous"


def system_places(root: Path) -> Places:
    """Return the paths for all users, for `install` as root."""
    return Places(
        root=root,
        base=Path("/opt/cipherbox"),
        command=Path("/usr/local/bin/cipherbox"),
        share=Path("/usr/local/share"),
        units=Path("/etc/systemd/system"),
        data=Path("/var/lib/cipherbox"),
        settings=Path("/etc/cipherbox"),
        system=True,
    )


def own_places(root: Path, client_home: Path) -> Places:
    """Return the paths for this user only."""
    home = Path.home()
    if WINDOWS:
        base = Path(os.environ.get("LOCALAPPDATA", home), "CipherBox")
        command, share = base / "bin" / "cipherbox.cmd", base / "share"
    else:
        base, command = home / ".local/lib/cipherbox", home / ".local/bin/cipherbox"
        share = home / ".local/share"
    return Places(
        root=root,
        base=base,
        command=command,
        share=share,
        units=home / ".config/systemd/user",
        data=client_home,
        settings=client_home,
        system=False,
    )


def read_pointer(pointer: Path) -> str:
    """Return the tree that `current` or `previous` names; empty if there is none."""
    try:
        return os.readlink(pointer) if not WINDOWS else pointer.read_text("utf-8").strip()
    except OSError:
        return ""


def write_pointer(pointer: Path, name: str) -> None:
    """Switch the pointer to another tree atomically."""
    new = pointer.with_name(f".{pointer.name}.new")
    new.unlink(missing_ok=True)
    if WINDOWS:
        new.write_text(name, "utf-8")
    else:
        new.symlink_to(name)
    new.replace(pointer)
