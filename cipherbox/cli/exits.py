"""Exit codes: one table for every command, and the default remedy of each kind of error.

Scripts may rely on the numbers; the manual page `exit-codes` lists them, and a test compares the
two.
"""

from __future__ import annotations

import enum
import errno

from cipherbox import errors
from cipherbox.harness.failure import StageFailed


class Exit(enum.IntEnum):
    """The exit codes of `cipherbox`."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NETWORK = 3
    CREDENTIALS = 4
    CONFIG = 5
    STORE = 6
    KEYS = 7
    ENVELOPE = 8
    PROTOCOL = 9
    OUTPUT = 10
    QUEUED = 11
    FILE = 12
    BUG = 70
    INTERRUPTED = 130


MEANING: dict[Exit, str] = {
    Exit.OK: "done",
    Exit.REFUSED: (
        "HQ refused the request, a recipient refused the message, or a comparison found a "
        "difference"
    ),
    Exit.USAGE: "invalid usage: an argument or option is missing or wrong",
    Exit.NETWORK: (
        "HQ, or the other end of a pipe, cannot be reached, or the connection was cut; "
        "retrying later may help"
    ),
    Exit.CREDENTIALS: (
        "the certificate or the enrolment token was not accepted, or the password of the keys is "
        "wrong"
    ),
    Exit.CONFIG: "a setting, or a file it names, is invalid",
    Exit.STORE: "this machine's storage failed: a file, a disk, the database, a lock",
    Exit.KEYS: "a key bundle is not trusted, or a recipient is not allowed; a person must decide",
    Exit.ENVELOPE: "an envelope must not be opened, or cannot be sealed this way",
    Exit.PROTOCOL: "protocol error between client and HQ",
    Exit.OUTPUT: (
        "the work is done, but its result could not be printed: standard output is closed, full, "
        "or not read"
    ),
    Exit.QUEUED: (
        "stored in this machine's outbox, but the awaited state was not reached in "
        "time; it is sent automatically"
    ),
    Exit.FILE: ("a file changed, disappeared, or cannot be sent; the recipient sees nothing of it"),
    Exit.BUG: "internal error in CipherBox",
    Exit.INTERRUPTED: (
        "stopped by Ctrl-C or SIGTERM before it finished (commands that run until "
        "stopped, like `serve` and `top`, exit with 0)"
    ),
}

_BY_ERROR: tuple[tuple[type[errors.CipherBoxError], Exit], ...] = (
    (errors.EnrolmentRefused, Exit.CREDENTIALS),
    (errors.Refused, Exit.REFUSED),
    (errors.Queued, Exit.QUEUED),
    (errors.NetworkError, Exit.NETWORK),
    (errors.CredentialsError, Exit.CREDENTIALS),
    (errors.PasswordError, Exit.CREDENTIALS),
    (errors.ConfigError, Exit.CONFIG),
    (errors.FileError, Exit.FILE),
    (errors.HandlerError, Exit.REFUSED),
    (errors.StoreError, Exit.STORE),
    (errors.BundleError, Exit.KEYS),
    (errors.LogError, Exit.KEYS),
    (errors.EnvelopeError, Exit.ENVELOPE),
    (errors.ProtocolError, Exit.PROTOCOL),
)

# The nearest class wins: an error without a line of its own gets its parent's.
_ADVICE: dict[type[errors.CipherBoxError], str] = {
    errors.NetworkError: (
        "Is this machine online, is HQ running, and is the address in client.toml right?"
    ),
    errors.Queued: "See what waits: cipherbox outbox list",
    errors.PeerGone: "How the two ends find each other: cipherbox manual tools",
    errors.ProxyFailed: (
        "See which way is taken: cipherbox doctor --all. The settings: [line] in client.toml, "
        "HTTPS_PROXY, NO_PROXY (cipherbox manual configuration)"
    ),
    errors.GoingAway: "HQ is stopping; run the command again in a moment.",
    errors.CredentialsError: (
        "Ask the admin for a new token (cipherbox enroll) and run: cipherbox join"
    ),
    errors.ListOverdue: (
        "Look at this machine's clock. If it is right, tell HQ's admin: cipherbox ca shows the "
        "list."
    ),
    errors.NotValidNow: (
        "Look at this machine's clock: timedatectl. If it is right, tell HQ's admin."
    ),
    errors.Revoked: (
        "The admin revoked this client. Ask the admin why. To come back, with what this home "
        "holds: the admin runs cipherbox enroll CLIENT_ID, you run here: cipherbox join"
    ),
    errors.Replaced: (
        "What this home received and sent stays here. If it is to be this client again: the "
        "admin runs cipherbox enroll CLIENT_ID --replace, you run here: cipherbox join"
    ),
    errors.BundleNotSigned: (
        "Send nothing, and tell the admin: HQ shows keys that their owner did not make."
    ),
    errors.BundleOutdated: "Their machine must run the new version once; then send again.",
    errors.HqRevoked: (
        "Send nothing until HQ's administrator has another certificate made: cipherbox manual pki"
    ),
    errors.TokenError: (
        "A token works once, for one id, for a day. Ask the admin for a new one (cipherbox enroll)."
    ),
    errors.EnrolmentRefused: "Ask the admin for a new token (cipherbox enroll).",
    errors.WrongPassword: (
        "Try again. If you are sure of it, the file was changed: restore it from your backup."
    ),
    errors.WeakPassword: (
        "Choose another: there is no way to set this one. (cipherbox manual security)"
    ),
    errors.PasswordNeeded: (
        "Run it on a terminal, or keep the password in a file that only you can read and name "
        "it: --password-file FILE before the command, or [client] password_file in client.toml. "
        "(cipherbox manual security)"
    ),
    errors.UnknownRecipient: "See who is enrolled: cipherbox clients",
    errors.RecipientRevoked: "See who is enrolled: cipherbox clients",
    errors.RecipientRefuses: (
        "Ask them to take your mail (they run: cipherbox contacts), then send it to them again; "
        "what was for them alone: cipherbox outbox retry."
    ),
    errors.NoRoute: (
        "See where it would go: cipherbox route resolve EXCHANGE KEY; bindings: cipherbox "
        "binding list"
    ),
    errors.RouteChanged: (
        "See who reads it now: cipherbox route resolve EXCHANGE KEY; then send again."
    ),
    errors.AmbiguousRoute: (
        "A reader is behind two of the bound queues: cipherbox route resolve EXCHANGE KEY"
    ),
    errors.ClockSkew: "Set this machine's clock.",
    errors.Busy: "Nothing was lost. Run the command again later.",
    errors.LimitReached: "An admin may raise the limit: cipherbox clients limit",
    errors.NotAllowed: "Permit the recipient: cipherbox route allow EXCHANGE CLIENT_ID",
    errors.BundleDiscontinuous: (
        "Compare fingerprints by telephone, then: cipherbox keys verify CLIENT_ID"
    ),
    errors.BundleRolledBack: (
        "HQ showed an old key. Tell the admin; do not send until it is explained."
    ),
    errors.BundleExpired: "Its owner must connect once (cipherbox receive) to publish a new one.",
    errors.UnsafeMix: (
        "Ask the recipient with the older key to join again, or send to each separately."
    ),
    errors.FileChanged: (
        "Send it again when it is complete, or with --copy, which keeps a copy of it as it is now."
    ),
    errors.StoreLocked: (
        "Stop the other process that uses this directory, or choose another directory."
    ),
    errors.StoreLeased: (
        "Stop that HQ first (cipherbox drain), or choose another database or schema."
    ),
    errors.SchemaTooNew: "Install the newer cipherbox.pyz that wrote it.",
    errors.SchemaTooOld: (
        "With the version that wrote it, deliver what waits and keep what was received; then start "
        "anew: cipherbox init, cipherbox join (cipherbox manual operations)."
    ),
    errors.VersionMismatch: "Install the same cipherbox.pyz on both machines.",
}


_SYSTEM_ADVICE = {
    errno.ENOSPC: "Make room on that disk, then run it again.",
    errno.EDQUOT: "This user's share of the disk is used up: make room, then run it again.",
    errno.EFBIG: "A file may not grow that large here: ulimit -f, or the file system's own limit.",
    errno.EROFS: "That file system is read-only: mount it writable, or choose another directory.",
    errno.EACCES: "Run it as the user whose file that is, or choose another directory.",
    errno.EMFILE: "Too many files are open: raise ulimit -n.",
}


def exit_code(error: BaseException) -> Exit:
    """Return the code for an error: BUG for any that is neither a CipherBoxError nor an OSError."""
    if isinstance(error, StageFailed):
        return Exit.REFUSED
    if isinstance(error, errors.CipherBoxError):
        return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.BUG)
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return Exit.OUTPUT
    return Exit.STORE if isinstance(error, OSError) else Exit.BUG


def advice(error: BaseException) -> str:
    """Return what to do next: the error's own remedy, or that of its class; '' if none."""
    if isinstance(error, errors.CipherBoxError) and error.remedy is not None:
        return sentence(error.remedy)
    system = error if isinstance(error, OSError) else error.__cause__
    if isinstance(system, OSError) and isinstance(error, OSError | errors.StoreError):
        return _SYSTEM_ADVICE.get(system.errno or 0, "")
    return next((_ADVICE[kind] for kind in type(error).__mro__ if kind in _ADVICE), "")


def leaf(error: BaseException) -> BaseException:
    """Return the most telling error of a group: a bug before any of ours, and any of these before a
    lost connection.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [leaf(inner) for inner in error.exceptions]
    for kind in (KeyboardInterrupt, SystemExit):
        if found := [e for e in leaves if isinstance(e, kind)]:
            return found[0]
    strangers = [e for e in leaves if not isinstance(e, errors.CipherBoxError)]
    return strangers[0] if strangers else min(leaves, key=lambda e: exit_code(e) == Exit.NETWORK)


def sentence(text: str) -> str:
    """Return the text with an initial capital, unless it begins with a path, an address or a code
    word.
    """
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.rstrip(":").replace("'", "").isalpha() else text
