"""Whose fault an error is.  The one place that decides what an error ends: an envelope, a try, or
this client's work.

The rule: *an error that comes from one sender's bytes, keys, names or requests ends with that
envelope or that sender; everybody else's mail arrives within seconds, in bounded memory.*  Wherever
something of another party is taken in, its errors go through `fault_of`:

- SENDER: what came is at fault, whatever part of this program noticed it.  The envelope is refused,
  with its reason and its receipt, and the next one is taken.  An error nobody thought of (a number
  that no database holds, a name that no disk takes, a text that no parser likes) counts as this: it
  was caused by what is being taken in, since all else was taken in before it without one.
- LATER: HQ or the network.  What depends on it waits, or is given back; nothing is wrong with the
  envelope.
- OURS: this machine, its files and its certificate, and an HQ that contradicts itself.  It is
  raised: a person has to look at it.
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

# What the disk says about a name, a path or a number that somebody else chose, and not about
# itself.
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
    """See the module."""

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
    """The same as the reason an envelope is refused for.  It is kept for a while: without its
    traceback, which would keep all that was in memory when it was raised.
    """
    if isinstance(error, EnvelopeError):
        error.__context__ = error.__cause__ = None
        return error.with_traceback(None)
    if isinstance(error, BundleError):
        return SenderNotValid(f"the keys of its sender are not trusted: {error}")
    if isinstance(error, CipherBoxError):
        return SenderNotValid(str(error))
    return EnvelopeError(f"it cannot be taken in here ({type(error).__name__}: {str(error)[:200]})")
