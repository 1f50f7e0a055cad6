"""A disk of our own that can lose power and be full: an ext4 file system in a file, on a loop
device.  Linux, as root.

A power cut is FS_IOC_SHUTDOWN without a flush of the journal, what xfstests uses: from then on
every write and sync fails, and what was not synced is gone when the file system is mounted again,
while the processes still run.  Whoever had files open there is to be killed, since it saw errors
that no power cut shows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from cipherbox import portable
from cipherbox.harness.failure import StageFailed

_BALLAST, _PROBE = "ballast", "probe"
_TRIES = 50  # a killed process may hold the mount for a moment


def why_no_disk() -> str:
    """Return why this machine cannot make such a disk; empty if it can."""
    if not portable.is_root():
        return "needs root"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing else ""


class Disk:
    """A file system of ``size`` bytes, mounted at ``place``; the file takes only what is used."""

    def __init__(self, image: Path, place: Path, size: int) -> None:
        self._image, self.place = image, place
        with image.open("wb") as file:
            file.truncate(size)
        place.mkdir()
        # without discard at the start, which some kernels do slowly on loop devices
        _run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", "-J", "size=4", str(image))
        self.mount()
        (place / "lost+found").rmdir()

    def mount(self) -> None:
        """Mount it; ext4 replays its journal."""
        _run("mount", "-o", "loop", str(self._image), str(self.place))

    def cut(self) -> None:
        """Cut the power.  Kill what uses it, then call `remount`."""
        portable.shut_file_system(self.place)

    def remount(self) -> None:
        """Mount it after a cut.  If another mount namespace still has the old mount, Linux would
        give it back as it is, shut down: then a copy of the image is mounted.
        """
        self.unmount()
        self.mount()
        try:
            (self.place / _PROBE).touch()
            (self.place / _PROBE).unlink()
        except OSError:
            self.unmount()
            copy = self._image.with_name(f"{self._image.name}+")
            _run("cp", "--sparse=always", str(self._image), str(copy))
            self._image.unlink()
            self._image = copy
            self.mount()

    def unmount(self) -> None:
        for attempt in range(_TRIES):
            try:
                _run("umount", str(self.place))
                return
            except StageFailed:
                if attempt == _TRIES - 1:
                    raise
                threading.Event().wait(0.1)

    def fill(self) -> None:
        """Fill it to the last block, without writing: the blocks are only reserved."""
        step = 1 << 30
        with (self.place / _BALLAST).open("ab") as file:
            size = 0
            while step >= 4096:
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    step //= 2

    def free(self) -> None:
        """Give the blocks back, durably: a later power cut must not fill it again."""
        (self.place / _BALLAST).unlink(missing_ok=True)
        portable.sync_directory(self.place)

    def remove(self) -> None:
        with suppress(StageFailed):
            self.unmount()
        self._image.unlink(missing_ok=True)


def detach(place: Path) -> None:
    """Unmount what a killed run left mounted, also while a process of it still uses it."""
    with suppress(StageFailed):
        _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"{' '.join(command)}: {done.stderr.strip()}")
