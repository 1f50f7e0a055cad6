"""Key bundles: a client's public keys, signed with its certificate key, with the certificate chain.

A bundle is believed in two steps.  `check_bundle`: its chain leads to the root, the certificate names this client,
the certificate's key signed it, it has not ended.  `check_succession`: it is the pinned one, or a chain of bundles
leads from the pinned one to it in which each is signed by the signing keys of the one before.  HQ's own CA can
certify, but it cannot continue: a swapped key stops the sender.  The bytes are in the manual page `bundle`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cipherbox import pki
from cipherbox.envelope import rsa, signature
from cipherbox.envelope.kinds import (
    PUBLIC_KEY_SIZES,
    SIGN_KEY_SIZES,
    STANZA_NAMES,
    KeyUsage,
    SignAlgorithm,
    StanzaType,
    key_id,
    label,
)
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleExpired,
    BundleForAnother,
    BundleMalformed,
    BundleNotCertified,
    BundleRolledBack,
    InvalidRequest,
    SignatureInvalid,
)
from cipherbox.limits import LIMITS, check_client_id

MAGIC = b"CBXB"
VERSION = 1
NO_HASH = bytes(32)
_HEAD = struct.Struct(">4sBBQQQ32sB")
_KEY = struct.Struct(">BBH")
_SIZE = struct.Struct(">H")
_USABLE = frozenset({StanzaType.HPKE_MLKEM768_X25519, StanzaType.HPKE_X25519, StanzaType.RSA_OAEP})
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))


@attrs.frozen
class BundleKey:
    """One public key; unknown usages and algorithms are kept and not used."""

    usage: int
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        return key_id(self.algorithm, self.public)


@attrs.frozen
class KeyBundle:
    """A decoded bundle; times are ms since 1970.  Decoded is not believed: see `check_bundle`."""

    client_id: str
    sequence: int
    created_at: int
    ends_at: int
    previous_hash: bytes
    keys: tuple[BundleKey, ...]
    chain: tuple[bytes, ...]
    certificate_signature: bytes
    continuity_suite: int
    continuity_signature: bytes
    hash: bytes  # SHA-256 of the signed part: what names this bundle
    raw: bytes = attrs.field(repr=False)

    @property
    def encrypt_keys(self) -> tuple[BundleKey, ...]:
        """In the owner's order of preference."""
        return tuple(k for k in self.keys if k.usage == KeyUsage.ENCRYPT)

    @property
    def sign_keys(self) -> dict[int, bytes]:
        return {k.algorithm: k.public for k in self.keys if k.usage == KeyUsage.SIGN}

    @property
    def certificate(self) -> x509.Certificate:
        return pki.load_der(self.chain[0])


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.raw):
            raise BundleMalformed("the key bundle ends too early")
        self.at += size
        return self.raw[self.at - size : self.at]

    def sized(self) -> bytes:
        return self.take(int.from_bytes(self.take(2), "big"))


def encode_signed_part(
    client_id: str, sequence: int, created_at: int, ends_at: int, previous_hash: bytes,
    keys: Sequence[BundleKey], chain: Sequence[bytes],
) -> bytes:  # fmt: skip
    """The part of a bundle that is signed, and hashed to name it."""
    name = client_id.encode()
    out = [_HEAD.pack(MAGIC, VERSION, 0, sequence, created_at, ends_at, previous_hash, len(name)), name]
    out.append(bytes([len(keys)]))
    for key in keys:
        out += [_KEY.pack(key.usage, key.algorithm, len(key.public)), key.public]
    out.append(bytes([len(chain)]))
    for certificate in chain:
        out += [_SIZE.pack(len(certificate)), certificate]
    return b"".join(out)


def encode_bundle(signed: bytes, certificate_signature: bytes, suite: int, continuity: bytes) -> bytes:
    """A whole bundle from its signed part and its signatures."""
    return b"".join(
        [signed, _SIZE.pack(len(certificate_signature)), certificate_signature, bytes([suite]),
         _SIZE.pack(len(continuity)), continuity]
    )  # fmt: skip


def decode_bundle(raw: bytes) -> KeyBundle:
    """Reads a bundle; BundleMalformed for anything else.  Nothing is verified yet."""
    if len(raw) > LIMITS.bundle_bytes or raw[:4] != MAGIC:
        raise BundleMalformed
    reader = _Reader(raw)
    _, version, flags, sequence, created_at, ends_at, previous_hash, size = _HEAD.unpack(reader.take(_HEAD.size))
    if version != VERSION or flags:
        raise BundleMalformed(f"the key bundle is of version {version} with flags {flags}; update this program")
    try:
        client_id = check_client_id(reader.take(size).decode("ascii"))
    except (UnicodeDecodeError, InvalidRequest):
        raise BundleMalformed("the key bundle's client id is not one") from None
    keys = []
    for _ in range(reader.take(1)[0]):
        usage, algorithm, length = _KEY.unpack(reader.take(_KEY.size))
        keys.append(BundleKey(usage, algorithm, reader.take(length)))
    chain = tuple(reader.sized() for _ in range(reader.take(1)[0]))
    signed = raw[: reader.at]
    certificate_signature = reader.sized()
    suite = reader.take(1)[0]
    continuity = reader.sized()
    if reader.at != len(raw) or not chain or not sequence or created_at >= ends_at or ends_at >= 1 << 47:
        raise BundleMalformed("the key bundle's fields do not fit together")
    bundle = KeyBundle(
        client_id, sequence, created_at, ends_at, previous_hash, tuple(keys), chain, certificate_signature, suite,
        continuity, hashlib.sha256(signed).digest(), raw,
    )  # fmt: skip
    _check_keys(bundle)
    return bundle


_KEY_SIZES: dict[tuple[int, int], int] = {
    **{(KeyUsage.ENCRYPT, kind): size for kind, size in PUBLIC_KEY_SIZES.items()},
    **{(KeyUsage.SIGN, kind): size for kind, size in SIGN_KEY_SIZES.items()},
}


def _check_keys(bundle: KeyBundle) -> None:
    seen = set()
    for key in bundle.keys:
        use = (key.usage, key.algorithm)
        if _KEY_SIZES.get(use, len(key.public)) != len(key.public) or use in seen:
            raise BundleMalformed("a key in the bundle has the wrong length or comes twice")
        seen.add(use)
    if SignAlgorithm.ED25519 not in bundle.sign_keys:
        raise BundleMalformed("the key bundle has no Ed25519 key")
    if (bundle.sequence == 1) != (bundle.previous_hash == NO_HASH):
        raise BundleMalformed("only the first key bundle has none before it")


def check_bundle(
    bundle: KeyBundle, client_id: str, root: x509.Certificate, now_ms: int, *, ended_is_error: bool = True
) -> x509.Certificate:
    """Certification: returns the leaf certificate, or raises the BundleError that says what is wrong.

    ``ended_is_error`` False: for the bundle of a sender, whose validity counts at HQ's acceptance time instead.
    """
    if bundle.client_id != client_id:
        raise BundleForAnother(f"asked for the keys of {client_id}, got those of {bundle.client_id}")
    leaf = pki.verify_chain(bundle.chain, root, _moment(bundle.created_at))
    if pki.common_name(leaf) != client_id:
        raise BundleForAnother(f"the certificate in the key bundle of {client_id} is for another client")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise BundleNotCertified("the certificate in the key bundle has no P-384 key")
    try:
        key.verify(bundle.certificate_signature, label("bundle") + bundle.hash, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise BundleNotCertified("the key bundle was not signed by its certificate's key") from None
    if bundle.ends_at > pki.ms(leaf.not_valid_after_utc):
        raise BundleNotCertified("the key bundle ends after its certificate")
    if ended_is_error and now_ms > bundle.ends_at:
        raise BundleExpired(f"the keys of {client_id} ended on {_moment(bundle.ends_at):%Y-%m-%d %H:%M} UTC")
    for entry in bundle.encrypt_keys:
        _check_usable(entry)
    return leaf


def _check_usable(entry: BundleKey) -> None:
    """A key nobody can seal for would stop every sender of a route; so it is refused before it is believed.

    ML-KEM's own check of an encapsulation key is FIPS 203, section 7.2; an X25519 point of small order makes zeros with
    every private key (RFC 7748, section 6.1), also with the fixed one here.
    """
    if entry.algorithm == StanzaType.RSA_OAEP:
        rsa.load_public(entry.public)
        return
    if entry.algorithm not in PUBLIC_KEY_SIZES:
        return
    try:
        if entry.algorithm == StanzaType.HPKE_MLKEM768_X25519:
            MLKEM768PublicKey.from_public_bytes(entry.public[:-32])
        _PROBE.exchange(X25519PublicKey.from_public_bytes(entry.public[-32:]))
    except ValueError:
        raise BundleMalformed("an encryption key in the bundle is not one") from None


def check_succession(pinned: KeyBundle, later: Sequence[KeyBundle]) -> KeyBundle:
    """The newest bundle, if each of ``later`` (oldest first, all after ``pinned``) continues the one before."""
    last = pinned
    for bundle in later:
        if bundle.client_id != pinned.client_id:
            raise BundleForAnother(f"asked for the keys of {pinned.client_id}, got those of {bundle.client_id}")
        if bundle.hash == last.hash:
            continue
        if bundle.sequence <= last.sequence:
            raise BundleRolledBack(
                f"HQ gave key bundle {bundle.sequence} of {pinned.client_id}; number {last.sequence} is pinned here"
            )
        check_continuity(last, bundle)
        last = bundle
    return last


def check_continuity(before: KeyBundle, after: KeyBundle) -> None:
    """BundleDiscontinuous unless ``after`` names ``before`` and is signed by its signing keys."""
    text = f"the new keys of {after.client_id} are not signed by the keys before them; compare fingerprints by phone"
    if after.sequence != before.sequence + 1 or after.previous_hash != before.hash:
        raise BundleDiscontinuous(text)
    try:
        signature.verify(
            before.sign_keys, after.continuity_suite, "bundle-continuity", after.hash, after.continuity_signature
        )
    except (SignatureInvalid, ValueError):
        raise BundleDiscontinuous(text) from None


def fingerprint(bundle: KeyBundle) -> str:
    """Thirty digits in groups of five, made from id and signing keys: what two people compare on the phone."""
    keys = b"".join(bytes([k.algorithm]) + k.public for k in bundle.keys if k.usage == KeyUsage.SIGN)
    digest = hashlib.sha256(label("fingerprint") + bundle.client_id.encode() + b"\x00" + keys).digest()
    digits = f"{int.from_bytes(digest[:16], 'big') % 10**30:030d}"
    return " ".join(digits[i : i + 5] for i in range(0, 30, 5))


def best_key(bundle: KeyBundle, known: frozenset[int] | None = None) -> BundleKey:
    """The owner's preferred encryption key among the stanza types this program can wrap for."""
    usable = known or _USABLE
    for key in bundle.encrypt_keys:
        if key.algorithm in usable:
            return key
    if known and known <= _USABLE:
        names = " or ".join(STANZA_NAMES[StanzaType(kind)] for kind in known)
        raise BundleError(
            f"{bundle.client_id} has published no key for {names}; when no kind is asked for, its owner's preferred "
            "one is used"
        )
    raise BundleError(f"{bundle.client_id} has no encryption key of a kind this program knows")


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
