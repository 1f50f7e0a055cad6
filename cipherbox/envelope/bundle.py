"""Key bundles: a client's public keys, signed by its certificate's key and by its own signing keys.

A bundle is trusted after two checks.  `check_bundle`: its chain leads to the root, the certificate
names this client, the certificate's key and the bundle's own signing keys signed it, and it has not
expired.  `check_succession`: it is the pinned one, or a chain of bundles leads from the pinned one
to it, each signed by the signing keys of its predecessor.  HQ's CA can issue certificates, but it
can neither extend that chain nor put its own encryption keys beside a client's real signing key:
only the holder of the signing keys can make a bundle that contains them.

Version 1 had no signature by its own keys.  Nothing is sealed to such a bundle any more.  It serves
as the pin from which its successor continues, and as the signing keys of old envelopes and
receipts.  The manual page `bundle` specifies the bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import pki
from cipherbox.classes import frozen
from cipherbox.envelope import signature
from cipherbox.envelope.labels import label
from cipherbox.envelope.stanza_types import IN_BUNDLES, STANZAS, key_id
from cipherbox.envelope.suites import SIGN_KEYS, KeyUsage, SignAlgorithm
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleExpired,
    BundleForAnother,
    BundleMalformed,
    BundleNotCertified,
    BundleNotSigned,
    BundleOutdated,
    BundleRolledBack,
    InvalidRequest,
    SignatureInvalid,
)
from cipherbox.limits import LIMITS, check_client_id

MAGIC = b"CBXB"
VERSION, VERSION_1 = 2, 1
NO_HASH = bytes(32)
SALT_BYTES = 16
# flag: its owner has lost the keys of the previous bundle, and does not vouch for that one
DISCONTINUOUS = 0x01
# readers refuse a bundle with an unknown bit among these, and ignore other unknown bits
CRITICAL_FLAGS = 0x0F
_HEAD = struct.Struct(">4sBBQQQ32s")
_KEY = struct.Struct(">BBH")
_SIZE = struct.Struct(">H")


@frozen
class BundleKey:
    """One public key. Unknown usages and algorithms are preserved, but not used."""

    usage: int
    algorithm: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        return key_id(self.algorithm, self.public)


@frozen
class KeyBundle:
    """A decoded bundle, not verified yet: see `check_bundle`. Times are ms since 1970."""

    client_id: str
    sequence: int
    created_at: int
    ends_at: int
    previous_hash: bytes
    keys: tuple[BundleKey, ...]
    chain: tuple[bytes, ...]
    certificate_signature: bytes
    own_suite: int  # 0 in version 1
    own_signature: bytes
    continuity_suite: int
    continuity_signature: bytes
    hash: bytes  # SHA-256 of the signed part; identifies this bundle
    raw: bytes = attrs.field(repr=False)
    version: int = VERSION
    flags: int = 0

    @property
    def encrypt_keys(self) -> tuple[BundleKey, ...]:
        """Return the encryption keys in the owner's order of preference."""
        return tuple(k for k in self.keys if k.usage == KeyUsage.ENCRYPT)

    @property
    def sign_keys(self) -> dict[int, bytes]:
        return {k.algorithm: k.public for k in self.keys if k.usage == KeyUsage.SIGN}

    @property
    def breaks_continuity(self) -> bool:
        """Return whether its owner had lost the previous keys: no signature links this bundle to
        its predecessor.
        """
        if self.version == VERSION_1:
            return self.sequence > 1 and not self.continuity_suite
        return bool(self.flags & DISCONTINUOUS)

    @property
    def certificate(self) -> x509.Certificate:
        return pki.load_der(self.chain[0])

    @cached_property
    def serial(self) -> str:
        """Return the serial number of its certificate, as in revocation lists."""
        return pki.serial(self.certificate)


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
    client_id: str,
    sequence: int,
    created_at: int,
    ends_at: int,
    previous_hash: bytes,
    keys: Sequence[BundleKey],
    chain: Sequence[bytes],
    salt: bytes,
    flags: int = 0,
) -> bytes:
    """Return the signed part of a bundle, whose hash identifies it.

    ``salt``: random bytes, chosen last.  The CA chooses the certificate; without the salt it could
    search for a certificate that gives two bundles the same fingerprint.
    """
    name = client_id.encode()
    out = [_HEAD.pack(MAGIC, VERSION, flags, sequence, created_at, ends_at, previous_hash), salt]
    out += [bytes([len(name)]), name, bytes([len(keys)])]
    for key in keys:
        out += [_KEY.pack(key.usage, key.algorithm, len(key.public)), key.public]
    out.append(bytes([len(chain)]))
    for certificate in chain:
        out += [_SIZE.pack(len(certificate)), certificate]
    return b"".join(out)


def encode_bundle(
    signed: bytes,
    certificate_signature: bytes,
    own_suite: int,
    own: bytes,
    continuity_suite: int,
    continuity: bytes,
) -> bytes:
    """Return the encoded bundle: its signed part and its signatures."""
    return b"".join(
        [
            signed,
            _SIZE.pack(len(certificate_signature)),
            certificate_signature,
            bytes([own_suite]),
            _SIZE.pack(len(own)),
            own,
            bytes([continuity_suite]),
            _SIZE.pack(len(continuity)),
            continuity,
        ]
    )


def decode_bundle(raw: bytes) -> KeyBundle:
    """Return the bundle in these bytes, unverified; raise BundleMalformed if there is none."""
    if len(raw) > LIMITS.bundle_bytes or raw[:4] != MAGIC:
        raise BundleMalformed
    reader = _Reader(raw)
    _, version, flags, sequence, created_at, ends_at, previous_hash = _HEAD.unpack(
        reader.take(_HEAD.size)
    )
    unknown = CRITICAL_FLAGS & ~DISCONTINUOUS if version == VERSION else 0xFF
    if version not in (VERSION_1, VERSION) or flags & unknown:
        raise BundleMalformed(
            f"the key bundle is of version {version} with flags {flags}",
            remedy="update this program",
        )
    if version == VERSION:
        reader.take(SALT_BYTES)
    try:
        client_id = check_client_id(reader.take(reader.take(1)[0]).decode("ascii"))
    except (UnicodeDecodeError, InvalidRequest):
        raise BundleMalformed("the key bundle's client id is invalid") from None
    keys = []
    for _ in range(reader.take(1)[0]):
        usage, algorithm, length = _KEY.unpack(reader.take(_KEY.size))
        keys.append(BundleKey(usage, algorithm, reader.take(length)))
    chain = tuple(reader.sized() for _ in range(reader.take(1)[0]))
    signed = raw[: reader.at]
    certificate_signature = reader.sized()
    own_suite, own = (reader.take(1)[0], reader.sized()) if version == VERSION else (0, b"")
    suite = reader.take(1)[0]
    continuity = reader.sized()
    if (
        reader.at != len(raw)
        or not chain
        or not sequence
        or created_at >= ends_at
        or ends_at >= 1 << 47
    ):
        raise BundleMalformed("the key bundle's fields do not fit together")
    bundle = KeyBundle(
        client_id,
        sequence,
        created_at,
        ends_at,
        previous_hash,
        tuple(keys),
        chain,
        certificate_signature,
        own_suite,
        own,
        suite,
        continuity,
        hashlib.sha256(signed).digest(),
        raw,
        version,
        flags,
    )
    _check_keys(bundle)
    return bundle


_KEY_SIZES: dict[tuple[int, int], int] = {
    **{(KeyUsage.ENCRYPT, n): row.public_bytes for n, row in STANZAS.items() if row.public_bytes},
    **{(KeyUsage.SIGN, n): row.public_bytes for n, row in SIGN_KEYS.items()},
}


def _check_keys(bundle: KeyBundle) -> None:
    seen = set()
    for key in bundle.keys:
        use = (key.usage, key.algorithm)
        if _KEY_SIZES.get(use, len(key.public)) != len(key.public) or use in seen:
            raise BundleMalformed("a key in the bundle has the wrong length or is repeated")
        seen.add(use)
    if SignAlgorithm.ED25519 not in bundle.sign_keys:
        raise BundleMalformed("the key bundle has no Ed25519 key")
    if (bundle.sequence == 1) != (bundle.previous_hash == NO_HASH):
        raise BundleMalformed("only the first key bundle has no predecessor")
    if not bundle.continuity_suite and bundle.continuity_signature:
        raise BundleMalformed("the key bundle has a continuity signature without a suite")
    if bundle.version == VERSION_1:
        return
    first, breaks = bundle.sequence == 1, bundle.breaks_continuity
    if (first and breaks) or (first or breaks) == bool(bundle.continuity_suite):
        raise BundleMalformed(
            "a key bundle after the first continues the one before, or says that it begins anew"
        )


def check_bundle(
    bundle: KeyBundle,
    client_id: str,
    root: x509.Certificate,
    now_ms: int,
    *,
    ended_is_error: bool = True,
    history: bool = False,
) -> x509.Certificate:
    """Check that a bundle is certified; return the leaf certificate, or raise a BundleError.

    ``ended_is_error`` is False for the bundle of a sender: its validity is checked at HQ's
    acceptance time instead. ``history`` also accepts version 1, for bundles nothing is sealed to.
    """
    if bundle.client_id != client_id:
        raise BundleForAnother(
            f"asked for the keys of {client_id}, got those of {bundle.client_id}"
        )
    leaf = pki.verify_chain(bundle.chain, root, _moment(bundle.created_at))
    if pki.common_name(leaf) != client_id:
        raise BundleForAnother(
            f"the certificate in the key bundle of {client_id} is for another client"
        )
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise BundleNotCertified("the certificate in the key bundle has no P-384 key")
    try:
        pki.verify_signature(leaf, bundle.certificate_signature, label("bundle") + bundle.hash)
    except InvalidSignature:
        raise BundleNotCertified("the key bundle was not signed by its certificate's key") from None
    if bundle.version == VERSION:
        _check_own_signature(bundle)
    elif not history:
        raise BundleOutdated(
            f"{client_id} has only keys of CipherBox 0.5.0 or older at HQ, which their owner did "
            f"not sign; nothing is sealed to them. {client_id} publishes new ones when its "
            "program of version 0.6.0 or later first runs"
        )
    chain = [pki.load_der(c) for c in bundle.chain]
    if bundle.ends_at > pki.ms(pki.end_of(chain)):
        raise BundleNotCertified("the key bundle ends after its certificate, or a CA above it")
    if ended_is_error and now_ms > bundle.ends_at:
        raise BundleExpired(
            f"the keys of {client_id} ended on {_moment(bundle.ends_at):%Y-%m-%d %H:%M} UTC"
        )
    if ended_is_error:
        pki.check_dates([*chain, root], _moment(now_ms))
    for entry in bundle.encrypt_keys:
        check_usable(entry)
    return leaf


def _check_own_signature(bundle: KeyBundle) -> None:
    """Raise BundleNotSigned unless the signing keys in this bundle signed it."""
    try:
        signature.verify(
            bundle.sign_keys, bundle.own_suite, "bundle-own", bundle.hash, bundle.own_signature
        )
    except SignatureInvalid:
        raise BundleNotSigned(
            f"the key bundle {bundle.sequence} of {bundle.client_id} is not signed by the "
            f"signing keys in it: somebody put other keys beside those of {bundle.client_id}"
        ) from None


def check_usable(entry: BundleKey) -> None:
    """Raise BundleMalformed if the key is of a known type and nothing can be sealed to it.

    Such a key would stop every sender of a route, so it is refused before the bundle is trusted.
    """
    row = STANZAS.get(entry.algorithm)
    if row is None or row.check_public is None:
        return
    try:
        row.check_public(entry.public)
    except ValueError:
        raise BundleMalformed("an encryption key in the bundle is invalid") from None


def check_succession(pinned: KeyBundle, later: Sequence[KeyBundle]) -> KeyBundle:
    """Return the newest bundle if each of ``later`` (oldest first, all after ``pinned``) continues
    its predecessor; else raise a BundleError.
    """
    last = pinned
    for bundle in later:
        if bundle.client_id != pinned.client_id:
            raise BundleForAnother(
                f"asked for the keys of {pinned.client_id}, got those of {bundle.client_id}"
            )
        if bundle.hash == last.hash:
            continue
        if bundle.sequence <= last.sequence:
            raise BundleRolledBack(
                f"HQ gave key bundle {bundle.sequence} of {pinned.client_id}; number "
                f"{last.sequence} is pinned here"
            )
        check_continuity(last, bundle)
        last = bundle
    return last


def check_continuity(before: KeyBundle, after: KeyBundle) -> None:
    """Raise BundleDiscontinuous unless ``after`` names ``before`` and is signed by its keys."""
    lost = " (it says that it begins anew)" if after.breaks_continuity else ""
    text = (
        f"the new keys of {after.client_id}{lost} are not signed by the keys before them; compare "
        "fingerprints by phone"
    )
    if after.version < before.version:
        raise BundleRolledBack(
            f"key bundle {after.sequence} of {after.client_id} is of an older version of the format"
        )
    if (
        after.breaks_continuity
        or after.sequence != before.sequence + 1
        or after.previous_hash != before.hash
    ):
        raise BundleDiscontinuous(text)
    try:
        signature.verify(
            before.sign_keys,
            after.continuity_suite,
            "bundle-continuity",
            after.hash,
            after.continuity_signature,
        )
    except (SignatureInvalid, ValueError):
        raise BundleDiscontinuous(text) from None


def fingerprint(bundle: KeyBundle) -> str:
    """Return the fingerprint that two people compare: thirty digits in groups of five.

    It is derived from the bundle hash, so it binds everything in the signed part: id, sequence
    number, previous bundle and every key.  Each bundle of a client has its own fingerprint.
    """
    digest = hashlib.sha256(label("bundle-number") + bundle.hash).digest()
    digits = f"{int.from_bytes(digest[:16], 'big') % 10**30:030d}"
    return " ".join(digits[i : i + 5] for i in range(0, 30, 5))


def best_key(bundle: KeyBundle, known: frozenset[int] | None = None) -> BundleKey:
    """Return the owner's most preferred encryption key of a stanza type this program supports."""
    usable = known or IN_BUNDLES
    for key in bundle.encrypt_keys:
        if key.algorithm in usable:
            return key
    if known and known <= IN_BUNDLES:
        names = " or ".join(STANZAS[kind].name for kind in known)
        raise BundleError(
            f"{bundle.client_id} has published no key for {names}; when no kind is asked for, "
            "its owner's preferred one is used"
        )
    raise BundleError(f"{bundle.client_id} has no encryption key of a kind this program knows")


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
