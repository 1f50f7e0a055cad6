"""Every error CipherBox raises or sends.

An error says three things besides its text: its stable wire code (what travels in an ERROR frame
and what scripts may test), whether the same request may be tried again unchanged later, and whether
the connection survives it.  Codes are never reused.

    CipherBoxError
    +-- ProtocolError            the peer broke the framing or the order of frames; it is cut
    |   +-- FrameTooLarge        +-- UnexpectedFrame      +-- VersionMismatch
    |   +-- HandshakeTimeout     +-- IdleTimeout          +-- TooManyConnections (retry)
    |   +-- SlowFrame (retry)
    +-- Refused                  HQ understood the request and said no; the connection lives
    |   +-- NotFound             unknown, or not yours to know: the two look the same
    |   +-- Forbidden            +-- Conflict             +-- InvalidRequest
    |   +-- EnvelopeRefused      +-- WrongSender          +-- IdReused
    |   +-- TooOld               +-- ClockSkew            +-- TooLarge
    |   +-- UnknownRecipient     +-- RouteChanged         +-- AmbiguousRoute
    |   +-- NoRoute              +-- BundleRefused        +-- EnrolmentRefused
    |   +-- RecipientRevoked     +-- KeyReused            +-- CommitmentChanged    +-- LimitReached
    |   +-- RecipientRefuses
    |   +-- Busy (retry)         +-- StoreUnavailable     +-- DiskFull
    |                            +-- QuotaExceeded        +-- Throttled            +-- Draining
    +-- CredentialsError         this party's certificate is missing, foreign, expired or revoked
    |   +-- Revoked              +-- TokenError           +-- ListOverdue (retry)
    |   +-- Replaced             another home has this client's id now
    |   +-- HqRevoked (retry)    HQ's own certificate, or a CA above it, was revoked
    +-- NetworkError (retry)     HQ cannot be reached, or the line was cut
    |   +-- TimedOut             +-- GoingAway            +-- PeerGone             +-- ProxyFailed
    |       +-- Queued           kept in the outbox; it goes out by itself
    +-- EnvelopeError            bytes that are no envelope, or one that must not be opened
    |   +-- MalformedEnvelope    +-- UnknownVersion       +-- NotRecipient
    |   +-- KeyMissing           +-- SignatureInvalid     +-- DecryptionFailed
    |   +-- CommitmentMismatch   +-- UnsafeMix            +-- SenderNotValid
    |   +-- PlaintextMismatch    +-- AnotherPlaintext     +-- NotAccepted
    +-- BundleError              a key bundle that must not be trusted
    |   +-- BundleMalformed      +-- BundleNotCertified   +-- BundleForAnother
    |   +-- BundleRolledBack     +-- BundleDiscontinuous  +-- BundleExpired
    |   +-- BundleUnlogged       HQ does not stand behind it in its signed log
    |   +-- BundleNotSigned      +-- BundleOutdated (retry)
    |   +-- BundleUnknown        an envelope names it, and HQ does not have it
    |   +-- NotAllowed           a resolved recipient that the sender's allow-list does not hold
    +-- LogError                 HQ's signed log does not hold what it promises; nothing is sent
    |   +-- LogMissing           +-- LogUnproven (retry)  +-- LogContradiction
    +-- ConfigError              a setting, named with file and key and what is allowed
    +-- PasswordError            what is under a password stays closed
    |   +-- WrongPassword        +-- PasswordNeeded       +-- WeakPassword
    +-- FileError                a file that cannot be sent as it is
    |   +-- FileChanged          it changed or vanished while it was sent
    |   +-- FileUnreadable       this user may not read it, or another program holds it
    +-- HandlerError             what a handler raises
    |   +-- Later (retry)        +-- Bad
    +-- StoreError               the database or spool; memory may be ahead of disk: reload
        +-- StoreLocked          +-- SchemaTooNew         +-- Damaged           +-- Fenced
        +-- StoreLeased          +-- SessionMoved (retry) +-- SchemaTooOld
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar


class Problem(str):
    """What is wrong with this machine, and what to do about it: shown together, read apart.

    ``what`` is the cause and ``remedy`` the way out; the text is both.  Nothing wrong is empty.
    """

    what: str
    remedy: str

    def __new__(cls, what: str = "", remedy: str = "") -> Problem:
        problem = super().__new__(cls, f"{what}; {remedy}" if remedy else what)
        problem.what, problem.remedy = what, remedy
        return problem


class CipherBoxError(Exception):
    """Base of all errors; ``detail`` carries the code-specific bytes of an ERROR frame."""

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
        self, message: str = "", detail: bytes = b"", *, remedy: str | None = None
    ) -> None:
        super().__init__(message or (self.__doc__ or self.name).splitlines()[0].rstrip("."))
        self.detail = detail
        self.remedy = remedy  # what to do about this one; None: what its class advises


class ProtocolError(CipherBoxError, code=0x0100, closes=True):
    """The peer broke the protocol."""


class FrameTooLarge(ProtocolError, code=0x0101):
    """A frame is larger than this connection allows."""


class UnexpectedFrame(ProtocolError, code=0x0102):
    """A frame came where its kind is not allowed."""


class VersionMismatch(ProtocolError, code=0x0103):
    """No protocol version is common to both ends."""


class HandshakeTimeout(ProtocolError, code=0x0104, retryable=True):
    """The opening took too long."""


class IdleTimeout(ProtocolError, code=0x0105, retryable=True):
    """Nothing was heard within the heartbeat."""


class TooManyConnections(ProtocolError, code=0x0106, retryable=True):
    """HQ has no room for another connection now."""


class SlowFrame(ProtocolError, code=0x0107, retryable=True):
    """A large frame moves too slowly while HQ holds memory for it."""


class Refused(CipherBoxError, code=0x0200):
    """HQ refused the request."""


class NotFound(Refused, code=0x0201):
    """There is no such thing, or it is not yours."""


class Forbidden(Refused, code=0x0202):
    """This client may not do that."""


class Conflict(Refused, code=0x0203):
    """It exists already and is different."""


class InvalidRequest(Refused, code=0x0204):
    """A field of the request has a value that is not allowed."""


class EnvelopeRefused(Refused, code=0x0210):
    """The envelope's bytes are not well formed."""


class WrongSender(Refused, code=0x0211):
    """The envelope's sender is not this connection's client."""


class IdReused(Refused, code=0x0212):
    """This envelope id was used before with other bytes."""


class TooOld(Refused, code=0x0213):
    """The envelope id is older than HQ's records reach."""


class ClockSkew(Refused, code=0x0214):
    """The envelope's time lies too far in the future; check this machine's clock."""


class TooLarge(Refused, code=0x0215):
    """The envelope is larger than HQ accepts."""


class UnknownRecipient(Refused, code=0x0216):
    """HQ has no mailbox for a recipient."""


class RouteChanged(Refused, code=0x0217):
    """The readers behind this route are not the envelope's recipients."""


class AmbiguousRoute(Refused, code=0x0218):
    """A recipient would get the envelope in more than one queue."""


class NoRoute(Refused, code=0x0219):
    """No queue with a reader is bound to this route."""


class BundleRefused(Refused, code=0x021B):
    """HQ did not accept the key bundle."""


class EnrolmentRefused(Refused, code=0x021C, closes=True):
    """HQ did not accept the enrolment."""


class RecipientRevoked(Refused, code=0x021D):
    """A recipient's certificate was revoked."""


class CommitmentChanged(Refused, code=0x0220):
    """This envelope id was accepted before with a commitment to another plaintext."""


class RecipientRefuses(Refused, code=0x0221):
    """A recipient has told HQ that it takes no mail from this sender."""


class KeyReused(Refused, code=0x0224):
    """This idempotency key was used before with other content."""


class LimitReached(Refused, code=0x0286):
    """This client has as many of these as it may; an admin may raise it (cipherbox clients
    limit).
    """


class Busy(Refused, code=0x0280, retryable=True):
    """HQ cannot take it now; try again later."""


class StoreUnavailable(Busy, code=0x0281):
    """HQ's store does not answer; nothing was recorded."""


class DiskFull(Busy, code=0x0282):
    """HQ's disk is full; acknowledgements still work."""


class QuotaExceeded(Busy, code=0x0283):
    """This sender has as much at HQ, in that queue or in all, as it may."""


class Throttled(Busy, code=0x0284):
    """Too many requests; slow down."""


class Draining(Busy, code=0x0285):
    """HQ is about to be upgraded and takes nothing new; it goes on afterwards."""


class CredentialsError(CipherBoxError, code=0x0300, closes=True):
    """The certificate was not accepted."""


class Revoked(CredentialsError, code=0x0301):
    """The certificate was revoked."""


class TokenError(CredentialsError, code=0x0302):
    """The enrolment token is not valid."""


class ListOverdue(CredentialsError, code=0x0303, retryable=True, closes=False):
    """HQ's revocation list has ended, or is older than one seen; nobody is trusted until a newer
    one comes.
    """


class HqRevoked(CredentialsError, code=0x0308, retryable=True):
    """HQ's own certificate, or a CA above it, was revoked; HQ needs another one."""


class Replaced(CredentialsError, code=0x0304):
    """Another home was enrolled under this client's id, and this one's certificate no longer
    counts.
    """


class NetworkError(CipherBoxError, code=0x0400, retryable=True, closes=True):
    """HQ cannot be reached."""


class TimedOut(NetworkError, code=0x0401):
    """No answer came in time."""


class Queued(TimedOut, code=0x0403):
    """HQ has not confirmed it yet; it is kept in the outbox and goes out by itself."""

    message_ids: tuple[str, ...] = ()  # of what is kept


class GoingAway(NetworkError, code=0x0402):
    """HQ is stopping; connect again later."""


class PeerGone(NetworkError, code=0x0404):
    """The other end of a pipe did not answer, fell silent or broke off."""


class ProxyFailed(NetworkError, code=0x0405):
    """The proxy on the way to HQ cannot be reached, or refuses."""


class EnvelopeError(CipherBoxError, code=0x0500):
    """The envelope must not be opened."""


class MalformedEnvelope(EnvelopeError, code=0x0501):
    """These bytes are not an envelope."""


class UnknownVersion(EnvelopeError, code=0x0502):
    """The envelope is of a version this program does not know."""


class NotRecipient(EnvelopeError, code=0x0503):
    """The envelope does not name this client as a recipient."""


class KeyMissing(EnvelopeError, code=0x0504):
    """The envelope was sealed to a key this client does not have."""


class SignatureInvalid(EnvelopeError, code=0x0505):
    """The sender's signature does not verify."""


class DecryptionFailed(EnvelopeError, code=0x0506):
    """The envelope does not decrypt."""


class CommitmentMismatch(EnvelopeError, code=0x0507):
    """The content key is not the one the prefix commits to."""


class UnsafeMix(EnvelopeError, code=0x0508):
    """Post-quantum and classical recipients in one envelope need an explicit word."""


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
    """The key bundle has ended."""


class NotAllowed(BundleError, code=0x0607):
    """A recipient behind this route is not on the allow-list."""


class NotAccepted(EnvelopeError, code=0x050D):
    """This client takes no mail from that sender."""


class BundleUnknown(BundleError, code=0x050C):
    """HQ does not have the key bundle the envelope names."""


class BundleUnlogged(BundleError, code=0x0608):
    """HQ did not prove that its signed log names the key bundle."""


class BundleNotSigned(BundleError, code=0x0609):
    """The key bundle is not signed by its own signing keys."""


class BundleOutdated(BundleError, code=0x060A, retryable=True):
    """The client has published no keys of this program's version yet."""


class LogError(CipherBoxError, code=0x0B00, closes=True):
    """HQ's signed log does not hold what it promises."""


class LogMissing(LogError, code=0x0B01):
    """HQ shows no signed log."""


class LogUnproven(LogError, code=0x0B02, retryable=True):
    """HQ did not prove that its signed log names what it confirmed."""


class LogContradiction(LogError, code=0x0B03):
    """HQ's signed log contradicts what HQ signed before."""


class ConfigError(CipherBoxError, code=0x0700):
    """The configuration is not valid."""


class PasswordError(CipherBoxError, code=0x0A00):
    """The password cannot be used."""


class WrongPassword(PasswordError, code=0x0A01):
    """The password is wrong."""


class PasswordNeeded(PasswordError, code=0x0A02):
    """The keys are under a password, and none was given."""


class WeakPassword(PasswordError, code=0x0A03):
    """The password is too easy to guess."""


class FileError(CipherBoxError, code=0x0900):
    """A file cannot be sent as it is."""


class FileChanged(FileError, code=0x0901):
    """The file changed or vanished while it was sent."""


class FileUnreadable(FileError, code=0x0A10):
    """The file cannot be read."""


class HandlerError(CipherBoxError, code=0x0A11):
    """A handler did not take a message."""


class Later(HandlerError, code=0x0A12, retryable=True):
    """The handler cannot take a message now: what it hands it to is away."""


class Bad(HandlerError, code=0x0A13):
    """The handler will not take this message as it is."""


class StoreError(CipherBoxError, code=0x0800):
    """The store failed."""


class StoreLocked(StoreError, code=0x0801):
    """Another process holds this data directory."""


class SchemaTooNew(StoreError, code=0x0802):
    """The database was written by a newer program."""


class SchemaTooOld(StoreError, code=0x0807):
    """The database was written by a version before 0.5.0, which this one does not understand."""


class Damaged(StoreError, code=0x0803):
    """Stored bytes do not match their hash."""


class StoreLeased(StoreError, code=0x0805):
    """Another HQ serves this database."""


class SessionMoved(StoreError, code=0x0806, retryable=True):
    """Another process of this home has spoken in the session meanwhile; seal again."""


class Fenced(StoreError, code=0x0804):
    """Another HQ took over this database."""


def _tree(base: type[CipherBoxError]) -> dict[int, type[CipherBoxError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found.update(_tree(child))
    return found


def names_detail(client_ids: Iterable[str]) -> bytes:
    """The detail of a refusal that is about these recipients alone."""
    names = [name.encode() for name in client_ids]
    return len(names).to_bytes(4, "big") + b"".join(bytes([len(name)]) + name for name in names)


def refused_recipients(error: CipherBoxError) -> tuple[str, ...]:
    """Whom a refusal is about, when the others could get the envelope; empty for all other
    errors.
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
    """The error an ERROR frame stands for; an unknown code becomes a plain Refused that names
    it.
    """
    kind = BY_CODE.get(code)
    if kind is None:
        return Refused(f"{message} (error code 0x{code:04x})", detail)
    return kind(message, detail)
