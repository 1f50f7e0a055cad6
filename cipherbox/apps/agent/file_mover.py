"""Move settled files of `outgoing` to `sent`, `failed` or `refused`; a file that changed stays.

Rule: the place is recorded before the file is moved, and the final state after it.  After a crash
in between, the file is either at that place, or it still has to be moved.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox import clock
from cipherbox.apps.agent.place import drop_reason, explain, free_name, move
from cipherbox.apps.agent.scan import Found, State, state_of
from cipherbox.classes import define
from cipherbox.client.outbox.folder_files import Claim
from cipherbox.client.outbox.origins import OVER, REFUSED, SENT, FolderFile
from cipherbox.client.outbox.rows import CONFIRMED, WAITING
from cipherbox.client.outbox.transfers import Transfer

OUTGOING, SENT_TO, FAILED, REFUSED_TO = "outgoing", "sent", "failed", "refused"


@define
class Disposition:
    """The final state of one file; ``target`` None: it stays where it is, or no longer exists."""

    claim: Claim
    state: int
    target: Path | None = None
    reason: str = ""
    changed: bool = False
    here: bool = False  # it lies at the target already
    trouble: str = ""  # it could not be moved

    @property
    def confirmed(self) -> bool:
        """Return whether HQ has it."""
        return self.state == SENT

    @property
    def failed(self) -> bool:
        """Return whether it cannot be sent as it is."""
        return self.state == OVER and not self.changed and bool(self.reason)

    @property
    def name(self) -> str:
        """Return the name that the recipients see."""
        return "/".join(self.claim.path)

    @property
    def row(self) -> tuple[int, int, str, str]:
        """Return the values for `FolderFiles.settle`."""
        return self.claim.number, self.state, str(self.target or ""), self.reason


class FileMover:
    """Moves the files of one folder; methods block on the disk.  ``marker`` returns the marker of
    a file, if markers are used.
    """

    def __init__(self, folder: Path, marker: Callable[[Path], Path | None]) -> None:
        self._folder, self._marker = folder, marker

    def plan(self, claims: Sequence[Claim]) -> list[Disposition]:
        """Return what to do with the files that HQ confirmed or refused."""
        return [self._plan(claim) for claim in claims if claim.fate != WAITING]

    def move(self, dispositions: Sequence[Disposition]) -> None:
        """Move them; errors are in `Disposition.trouble`."""
        for end in dispositions:
            self._move(end)

    def clear(self, empty: Sequence[Path], quiet_s: float) -> None:
        """Remove folders that everything was sent from and that have not changed for that time: a
        program may still be filling one.
        """
        for folder in empty:
            with suppress(OSError, ValueError):
                sent = self._folder / SENT_TO / folder.relative_to(self._folder / OUTGOING)
                if sent.is_dir() and clock.now_s() - os.lstat(folder).st_mtime >= quiet_s:
                    os.rmdir(folder)

    def fail(self, found: Found, reason: str) -> str:
        """Move a file that was never taken to `failed`; return the error, or an empty text."""
        try:
            target = self._target(found.file, FAILED)
            move(found.file, target)
        except (OSError, ValueError) as error:
            return f"{found.file} cannot be moved to {FAILED}: {_words(error)}"
        self._unmark(found.file)
        with suppress(OSError):  # the reason is in the log, too
            explain(target, reason)
        return ""

    def shift(self, claim: Claim, to: str) -> Disposition:
        """Move a file from `sent` to `refused`, or back."""
        end = Disposition(
            claim,
            REFUSED if to == REFUSED_TO else SENT,
            reason=claim.why if to == REFUSED_TO else "",
        )
        place = Path(claim.place) if claim.place else None
        try:
            target = self._target(Path(claim.file), to)
            if place is not None and os.path.lexists(place):
                move(place, target)
                drop_reason(place)
                end.target = target
            if to == REFUSED_TO:
                explain(target, end.reason)
        except (OSError, ValueError) as error:
            end.trouble = f"{claim.place} cannot be moved to {to}: {_words(error)}"
        return end

    def claim_of(self, transfer: Transfer) -> FolderFile:
        """Return the record of a transfer's file."""
        try:
            state = state_of(os.lstat(transfer.file))
        except OSError:
            state = State(transfer.size, transfer.modified_ns, 0, 0)
        return FolderFile(
            transfer.file,
            transfer.path,
            transfer.recipients,
            transfer.size,
            transfer.modified_ns,
            state.changed_ns,
            state.inode,
        )

    # -- inside ------------------------------------------------------------------------------------

    def _plan(self, claim: Claim) -> Disposition:
        file = Path(claim.file)
        good = claim.fate == CONFIRMED
        end = Disposition(
            claim, SENT if good else OVER, reason="" if good else claim.why or "HQ refused it"
        )
        if claim.place and _is(claim, Path(claim.place)):
            end.target, end.here = Path(claim.place), True
            return end
        now = _state(file)
        if now is None:
            end.reason = ""  # a person removed it
        elif not _same(claim, now):
            end.changed, end.state = True, OVER
        else:
            try:
                end.target = self._target(file, SENT_TO if good else FAILED)
            except ValueError:
                end.reason = ""  # of another folder, when the agent ran with another --folder
            except OSError as error:
                end.trouble = f"{file} cannot be moved: {_words(error)}"
        return end

    def _move(self, end: Disposition) -> None:
        file = Path(end.claim.file)
        self._unmark(file)
        if end.target is None or end.trouble:
            return
        try:
            if not end.here:
                move(file, end.target)
                if not _is(end.claim, end.target) and not os.path.lexists(file):
                    move(end.target, file)  # a program wrote into it meanwhile
                    end.target, end.changed, end.state = None, True, OVER
                    return
        except OSError as error:
            end.trouble = f"{file} cannot be moved: {_words(error)}"
            return
        if end.failed:
            with suppress(OSError):
                explain(end.target, end.reason)

    def _target(self, file: Path, where: str) -> Path:
        return free_name(self._folder / where / file.relative_to(self._folder / OUTGOING))

    def _unmark(self, file: Path) -> None:
        marker = self._marker(file)
        if marker is not None:
            with suppress(OSError):
                marker.unlink()


def _state(file: Path) -> State | None:
    try:
        return state_of(os.lstat(file))
    except OSError:
        return None


def _is(claim: Claim, place: Path) -> bool:
    now = _state(place)
    return now is not None and (now.size, now.modified_ns) == (claim.size, claim.modified_ns)


def _same(claim: Claim, now: State) -> bool:
    """Return whether this is the file that was taken.

    If its place was recorded and its change time differs, it was moved away and back.
    """
    same = (now.size, now.modified_ns) == (claim.size, claim.modified_ns)
    same = same and (not claim.inode or now.inode == claim.inode)
    return same and (not claim.place or now.changed_ns == claim.changed_ns)


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
