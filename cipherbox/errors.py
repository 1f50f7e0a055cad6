"""Every error CipherBox raises or sends.

Besides its text an error has a stable wire code (which an ERROR frame carries and scripts may
test), and says whether the same request may be retried later and whether the connection survives
it.  Codes are never reused.

    CipherBoxError
    +-- ProtocolError            the peer violated the protocol; the connection ends
    |   +-- FrameTooLarge        +-- UnexpectedFrame      +-- VersionMismatch
    |   +-- HandshakeTimeout     +-- IdleTimeout          +-- TooManyConnections (retry)
    |   +-- SlowFrame (retry)
    +-- Refused                  HQ refused a valid request; the connection stays open
    |   +-- NotFound             unknown or not visible to you: the two look the same
    |   +-- Forbidden            +-- Conflict             +-- InvalidRequest
    |   +-- EnvelopeRefused      +-- WrongSender          +-- IdReused
    |   +-- TooOld               +-- ClockSkew            +-- TooLarge
    |   +-- UnknownRecipient     +-- RouteChanged         +-- AmbiguousRoute
    |   +-- NoRoute              +-- BundleRefused        +-- EnrolmentRefused
    |   +-- RecipientRevoked     +-- KeyReused            +-- CommitmentChanged    +-- LimitReached
    |   +-- RecipientRefuses
    |   +-- Busy (retry)         +-- StoreUnavailable     +-- DiskFull
    |                            +-- QuotaExceeded        +-- Throttled            +-- Draining
    |                            +-- ClockDoubted
    +-- CredentialsError         this party's certificate is missing, foreign, expired or revoked
    |   +-- Revoked              +-- TokenError           +-- ListOverdue (retry)
    |   +-- Replaced             another home has taken over this client's id
    |   +-- HqRevoked (retry)    HQ's own certificate, or a CA above it, was revoked
    |   +-- NotValidNow (retry)  by this machine's clock, which may be wrong
    +-- NetworkError (retry)     HQ is unreachable, or the connection was lost
    |   +-- TimedOut             +-- GoingAway            +-- PeerGone             +-- ProxyFailed
    |       +-- Queued           kept in the outbox, sent automatically
    +-- EnvelopeError            not an envelope, or one that must not be opened
    |   +-- MalformedEnvelope    +-- UnknownVersion       +-- NotRecipient
    |   +-- KeyMissing           +-- SignatureInvalid     +-- DecryptionFailed
    |   +-- CommitmentMismatch   +-- UnsafeMix            +-- SenderNotValid
    |   +-- PlaintextMismatch    +-- AnotherPlaintext     +-- NotAccepted
    +-- BundleError              a key bundle that must not be trusted
    |   +-- BundleMalformed      +-- BundleNotCertified   +-- BundleForAnother
    |   +-- BundleRolledBack     +-- BundleDiscontinuous  +-- BundleExpired
    |   +-- BundleUnlogged       HQ's signed log does not name it
    |   +-- BundleNotSigned      +-- BundleOutdated (retry)
    |   +-- BundleUnknown        named by an envelope, but HQ does not have it
    |   +-- NotAllowed           a resolved recipient that is not on the sender's allow-list
    +-- LogError                 HQ's signed log fails verification; nothing is sent
    |   +-- LogMissing           +-- LogUnproven (retry)  +-- LogContradiction
    +-- ConfigError              an invalid setting, with its file, its key and what is allowed
    +-- PasswordError            data protected by a password cannot be opened
    |   +-- WrongPassword        +-- PasswordNeeded       +-- WeakPassword
    +-- FileError                a file that cannot be sent as it is
    |   +-- FileChanged          changed or removed while it was being sent
    |   +-- FileUnreadable       no permission, or another program has it open
    +-- HandlerError             raised by a handler
    |   +-- Later (retry)        +-- Bad
    +-- StoreError               the database or spool failed; memory may be ahead of disk: reload
        +-- StoreLocked          +-- SchemaTooNew         +-- Damaged           +-- Fenced
        +-- StoreLeased          +-- SessionMoved (retry) +-- SchemaTooOld
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar, Self


class Problem(str):
    """A cause and its remedy as separate fields; the text is both.  An empty one: nothing is wrong.

    Programs read the fields and never take the text apart.
    """

    what: str
    remedy: str

    def __new__(cls, what: str = "", remedy: str = "") -> Problem:
        problem = super().__new__(cls, f"{what}; {remedy}" if remedy else what)
        problem.what, problem.remedy = what, remedy
        return problem


class CipherBoxError(Exception):
    """Base of all errors; ``detail`` carries the code-specific bytes of an ERROR frame.

    ``what`` is the cause.  ``remedy`` says what to do about this error; None: what the command line
    advises for its class.  The text is both, as in a `Problem`.
    """

    code: ClassVar[int] = 1
    name: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    closes: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, code: int, retryable: bool | None = None, closes: bool | None = None
    ) -> None:
        cls.code = code
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__.removesuffix("Error")).lower()
        if retryable is not None:
            cls.retryable = retryable
        if closes is not None:
            cls.closes = closes

    def __init__(
        self, message: str | Problem = "", detail: bytes = b"", *, remedy: str | None = None
    ) -> None:
        if isinstance(message, Problem):
            remedy = remedy or message.remedy or None
            message = message.what
        self.what = message or summary(type(self)).rstrip(".")
        super().__init__(str(Problem(self.what, remedy or "")))
        self.detail = detail
        self.remedy = remedy

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, each cause with its remedy; more than one for some errors."""
        return (Problem(self.what, self.remedy or ""),)

    def copy(self, what: str = "", *, remedy: str | None = None) -> Self:
        """Return a copy of this error, with another ``what`` or ``remedy`` if one is given.

        One instance that is raised in many tasks would gather all their tracebacks.
        """
        return type(self)(what or self.what, self.detail, remedy=remedy or self.remedy)


def summary(kind: type[CipherBoxError]) -> str:
    """Return the first paragraph of an error's docstring as one line."""
    return " ".join((kind.__doc__ or kind.name).partition("\n\n")[0].split())


def kind_of(error: CipherBoxError) -> type[CipherBoxError]:
    """Return what an error is to a person: of kinds that other modules derive, the base here."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ == __name__)


class ProtocolError(CipherBoxError, code=0x0100, closes=True):
    """The peer violated the protocol."""


class FrameTooLarge(ProtocolError, code=0x0101):
    """A frame is larger than this connection allows."""


class UnexpectedFrame(ProtocolError, code=0x0102):
    """A frame arrived where its kind is not allowed."""


class VersionMismatch(ProtocolError, code=0x0103):
    """The two ends have no protocol version in common."""


class HandshakeTimeout(ProtocolError, code=0x0104, retryable=True):
    """The TLS handshake and HELLO took too long."""


class IdleTimeout(ProtocolError, code=0x0105, retryable=True):
    """Nothing was received within two heartbeats."""


class TooManyConnections(ProtocolError, code=0x0106, retryable=True):
    """HQ accepts no further connections at present."""


class SlowFrame(ProtocolError, code=0x0107, retryable=True):
    """A large frame moves too slowly while HQ holds memory for it."""


class Refused(CipherBoxError, code=0x0200):
    """HQ refused the request."""


class NotFound(Refused, code=0x0201):
    """It does not exist, or is not visible to you."""


class Forbidden(Refused, code=0x0202):
    """This client may not do that."""


class Conflict(Refused, code=0x0203):
    """It already exists and is different."""


class InvalidRequest(Refused, code=0x0204):
    """A field of the request has a value that is not allowed."""


class EnvelopeRefused(Refused, code=0x0210):
    """The envelope is malformed."""


class WrongSender(Refused, code=0x0211):
    """The envelope's sender is not the client of this connection."""


class IdReused(Refused, code=0x0212):
    """This envelope id was used before with other bytes."""


class TooOld(Refused, code=0x0213):
    """The envelope id is older than HQ's records."""


class ClockSkew(Refused, code=0x0214):
    """The envelope's time is too far in the future."""


class TooLarge(Refused, code=0x0215):
    """The envelope is larger than HQ accepts."""


class UnknownRecipient(Refused, code=0x0216):
    """HQ has no mailbox for a recipient."""


class RouteChanged(Refused, code=0x0217):
    """The readers behind this route are not the envelope's recipients."""


class AmbiguousRoute(Refused, code=0x0218):
    """A recipient would receive the envelope through more than one queue."""


class NoRoute(Refused, code=0x0219):
    """No queue that has a reader is bound to this route."""


class BundleRefused(Refused, code=0x021B):
    """HQ refused the key bundle."""


class EnrolmentRefused(Refused, code=0x021C, closes=True):
    """HQ refused the enrolment."""


class RecipientRevoked(Refused, code=0x021D):
    """A recipient's certificate was revoked."""


class CommitmentChanged(Refused, code=0x0220):
    """This envelope id was accepted before with a commitment to another plaintext."""


class RecipientRefuses(Refused, code=0x0221):
    """A recipient does not accept mail from this sender."""


class KeyReused(Refused, code=0x0224):
    """This idempotency key was used before with other content."""


class LimitReached(Refused, code=0x0286):
    """This client has reached a limit, which an admin may raise."""


class Busy(Refused, code=0x0280, retryable=True):
    """HQ cannot accept it at present."""


class StoreUnavailable(Busy, code=0x0281):
    """HQ's store is not available; nothing was recorded."""


class DiskFull(Busy, code=0x0282):
    """HQ's disk is full; acknowledgements still work."""


class QuotaExceeded(Busy, code=0x0283):
    """This sender has reached its quota at HQ, in that queue or in all of them."""


class Throttled(Busy, code=0x0284):
    """Too many requests in a short time."""


class Draining(Busy, code=0x0285):
    """HQ is draining before a restart and accepts nothing new."""


class ClockDoubted(Busy, code=0x0287):
    """HQ's clock is in doubt: it accepts and issues nothing new until the clock is set right or an
    admin confirms it.
    """


class CredentialsError(CipherBoxError, code=0x0300, closes=True):
    """The certificate was not accepted."""


class Revoked(CredentialsError, code=0x0301):
    """The certificate was revoked."""


class TokenError(CredentialsError, code=0x0302):
    """The enrolment token is not valid."""


class ListOverdue(CredentialsError, code=0x0303, retryable=True, closes=False):
    """HQ's revocation list has expired or is older than one seen before; no certificate is trusted
    until there is a newer one.
    """


class NotValidNow(CredentialsError, code=0x0309, retryable=True):
    """A certificate or a revocation list is not valid at the time that this machine's clock shows;
    the clock may be wrong.
    """


class HqRevoked(CredentialsError, code=0x0308, retryable=True):
    """HQ's own certificate, or a CA above it, was revoked; HQ needs a new one."""


class Replaced(CredentialsError, code=0x0304):
    """Another home was enrolled under this client's id; the certificate of this one is no longer
    valid.
    """


class NetworkError(CipherBoxError, code=0x0400, retryable=True, closes=True):
    """HQ cannot be reached."""


class TimedOut(NetworkError, code=0x0401):
    """No answer arrived in time."""


class Queued(TimedOut, code=0x0403):
    """HQ has not confirmed it yet; it is kept in the outbox and sent automatically."""

    message_ids: tuple[str, ...] = ()  # of what is kept


class GoingAway(NetworkError, code=0x0402):
    """HQ is stopping."""


class PeerGone(NetworkError, code=0x0404):
    """The other end of a pipe did not answer, timed out or disconnected."""


class ProxyFailed(NetworkError, code=0x0405):
    """The proxy on the way to HQ is unreachable or refused the connection."""


class EnvelopeError(CipherBoxError, code=0x0500):
    """The envelope must not be opened."""


class MalformedEnvelope(EnvelopeError, code=0x0501):
    """These bytes are not an envelope."""


class UnknownVersion(EnvelopeError, code=0x0502):
    """This program does not know the envelope's version."""


class NotRecipient(EnvelopeError, code=0x0503):
    """The envelope does not name this client as a recipient."""


class KeyMissing(EnvelopeError, code=0x0504):
    """The envelope was sealed to a key this client does not have."""


class SignatureInvalid(EnvelopeError, code=0x0505):
    """The sender's signature does not verify."""


class DecryptionFailed(EnvelopeError, code=0x0506):
    """The envelope cannot be decrypted."""


class CommitmentMismatch(EnvelopeError, code=0x0507):
    """The content key is not the one the prefix commits to."""


class UnsafeMix(EnvelopeError, code=0x0508):
    """Mixing post-quantum and classical recipients in one envelope must be allowed explicitly."""


class SenderNotValid(EnvelopeError, code=0x0509):
    """The sender's keys were not valid when HQ accepted the envelope."""


class PlaintextMismatch(EnvelopeError, code=0x050A):
    """The plaintext is not the one the prefix commits to."""


class AnotherPlaintext(EnvelopeError, code=0x050B):
    """This envelope id was recorded before with a commitment to another plaintext."""


class BundleError(CipherBoxError, code=0x0600):
    """The key bundle must not be trusted."""


class BundleMalformed(BundleError, code=0x0601):
    """These bytes are not a key bundle."""


class BundleNotCertified(BundleError, code=0x0602):
    """The key bundle is not certified by this HQ's root."""


class BundleForAnother(BundleError, code=0x0603):
    """The key bundle belongs to another client."""


class BundleRolledBack(BundleError, code=0x0604):
    """The key bundle is older than the one pinned."""


class BundleDiscontinuous(BundleError, code=0x0605):
    """The key bundle is not signed by the key before it."""


class BundleExpired(BundleError, code=0x0606):
    """The key bundle has expired."""


class NotAllowed(BundleError, code=0x0607):
    """A recipient behind this route is not on the allow-list."""


class NotAccepted(EnvelopeError, code=0x050D):
    """This client does not accept mail from that sender."""


class BundleUnknown(BundleError, code=0x050C):
    """HQ does not have the key bundle the envelope names."""


class BundleUnlogged(BundleError, code=0x0608):
    """HQ has not proved that its signed log names the key bundle."""


class BundleNotSigned(BundleError, code=0x0609):
    """The key bundle is not signed by its own signing keys."""


class BundleOutdated(BundleError, code=0x060A, retryable=True):
    """The client has not published keys of the current format yet."""


class LogError(CipherBoxError, code=0x0B00, closes=True):
    """HQ's signed log fails verification."""


class LogMissing(LogError, code=0x0B01):
    """HQ presents no signed log."""


class LogUnproven(LogError, code=0x0B02, retryable=True):
    """HQ has not proved that its signed log names what it confirmed."""


class LogContradiction(LogError, code=0x0B03):
    """HQ's signed log contradicts what HQ signed before."""


class ConfigError(CipherBoxError, code=0x0700):
    """The configuration is invalid."""

    _several: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, problems: Iterable[Problem], separator: str = "\n") -> Self:
        """Return one error for all ``problems``."""
        found = tuple(problems)
        if len(found) == 1:
            return cls(found[0])
        error = cls(separator.join(found))
        error._several = found
        return error

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self._several or super().problems


class PasswordError(CipherBoxError, code=0x0A00):
    """The password cannot be used."""


class WrongPassword(PasswordError, code=0x0A01):
    """The password is wrong."""


class PasswordNeeded(PasswordError, code=0x0A02):
    """The keys are protected by a password, and none was given."""


class WeakPassword(PasswordError, code=0x0A03):
    """The password is too easy to guess."""


class FileError(CipherBoxError, code=0x0900):
    """A file cannot be sent as it is."""


class FileChanged(FileError, code=0x0901):
    """The file was changed or removed while it was being sent."""


class FileUnreadable(FileError, code=0x0A10):
    """The file cannot be read."""


class HandlerError(CipherBoxError, code=0x0A11):
    """A handler did not accept a message."""


class Later(HandlerError, code=0x0A12, retryable=True):
    """The handler cannot accept a message at present; it is retried later."""


class Bad(HandlerError, code=0x0A13):
    """The handler will never accept this message."""


class StoreError(CipherBoxError, code=0x0800):
    """The store failed."""


class StoreLocked(StoreError, code=0x0801):
    """Another process is using this data directory."""


class SchemaTooNew(StoreError, code=0x0802):
    """The database was written by a newer program."""


class SchemaTooOld(StoreError, code=0x0807):
    """The database was written by a version before 0.5.0, which this program cannot read."""


class Damaged(StoreError, code=0x0803):
    """Stored bytes do not match their hash."""


class StoreLeased(StoreError, code=0x0805):
    """Another HQ is running on this database."""


class SessionMoved(StoreError, code=0x0806, retryable=True):
    """Another process of this home has advanced the session meanwhile."""


class Fenced(StoreError, code=0x0804):
    """Another HQ took over this database."""


def _tree(base: type[CipherBoxError]) -> dict[int, type[CipherBoxError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found.update(_tree(child))
    return found


def names_detail(client_ids: Iterable[str]) -> bytes:
    """Return the detail of a refusal that concerns only these recipients."""
    names = [name.encode() for name in client_ids]
    return len(names).to_bytes(4, "big") + b"".join(bytes([len(name)]) + name for name in names)


def refused_recipients(error: CipherBoxError) -> tuple[str, ...]:
    """Return the recipients a refusal concerns, if the others could receive the envelope; return an
    empty tuple for all other errors.
    """
    if not isinstance(error, UnknownRecipient | RecipientRevoked | RecipientRefuses):
        return ()
    names, at = [], 4
    for _ in range(int.from_bytes(error.detail[:4], "big")):
        end = at + 1 + (error.detail[at] if at < len(error.detail) else 0)
        if end > len(error.detail):
            return ()
        names.append(error.detail[at + 1 : end].decode("utf-8", "replace"))
        at = end
    return tuple(names)


BY_CODE: dict[int, type[CipherBoxError]] = _tree(CipherBoxError)


def from_wire(code: int, message: str, detail: bytes = b"") -> CipherBoxError:
    """Return the error of an ERROR frame; an unknown code becomes a plain Refused that names it."""
    kind = BY_CODE.get(code)
    if kind is None:
        return Refused(f"{message} (error code 0x{code:04x})", detail)
    return kind(message, detail)
