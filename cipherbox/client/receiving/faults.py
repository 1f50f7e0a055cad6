"""Whose fault an error is, and so what it affects: one envelope, one attempt, or all of this
client's work.

The rule: *an error that comes from one sender's bytes, keys, names or requests affects only that
envelope or that sender; everyone else's mail arrives within seconds, in bounded memory.*  Wherever
another party's data is processed, errors go through `fault_of`:

- SENDER: the data is at fault, wherever the error was detected.  The envelope is refused, with a
  reason and a receipt, and the next one is processed.  Unforeseen errors (a number too large for
  the database, a name the disk refuses, text that a parser rejects) count as this kind: earlier
  data caused none, so this data did.
- LATER: HQ or the network.  Whatever depends on it waits or is requeued; the envelope is not at
  fault.
- OURS: this machine, its files or its certificate, or an HQ that contradicts itself.  It is raised,
  for a person to resolve.
"""

from __future__ import annotations

import enum
import errno
import sqlite3

from cipherbox.errors import (
    BundleError,
    CipherBoxError,
    ConfigError,
    CredentialsError,
    EnvelopeError,
    LogContradiction,
    PasswordError,
    SenderNotValid,
    StoreError,
)

# Disk errors about a name, a path or a number that another party chose, not about the disk.
_CHOSEN = frozenset(
    [
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EILSEQ,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENOTEMPTY,
        errno.EFBIG,
        errno.EOVERFLOW,
    ]
)


class Fault(enum.Enum):
    """The kinds of faults, described in the module."""

    SENDER = 0
    LATER = 1
    OURS = 2


def fault_of(error: Exception) -> Fault:
    """Return whose fault an error is that arose while something of one sender was taken in."""
    if isinstance(error, EnvelopeError | BundleError):
        return Fault.SENDER
    if isinstance(error, CipherBoxError):
        if error.retryable:
            return Fault.LATER
        ours = isinstance(
            error, StoreError | ConfigError | CredentialsError | PasswordError | LogContradiction
        )
        return Fault.OURS if ours else Fault.SENDER
    if isinstance(error, sqlite3.Error):
        rejected = isinstance(
            error, sqlite3.DataError | sqlite3.IntegrityError | sqlite3.InterfaceError
        )
        return (
            Fault.SENDER if rejected or isinstance(error, sqlite3.ProgrammingError) else Fault.OURS
        )
    if isinstance(error, OSError):
        return Fault.SENDER if error.errno in _CHOSEN else Fault.OURS
    return Fault.OURS if isinstance(error, MemoryError) else Fault.SENDER


def refusal(error: Exception) -> EnvelopeError:
    """Return the error as the reason for a refusal, without its traceback, which would keep in
    memory everything that its frames refer to.
    """
    if isinstance(error, EnvelopeError):
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    if isinstance(error, BundleError):
        return SenderNotValid(f"the keys of its sender are not trusted: {error}")
    if isinstance(error, CipherBoxError):
        return SenderNotValid(str(error))
    return EnvelopeError(f"it cannot be received here ({type(error).__name__}: {str(error)[:200]})")
