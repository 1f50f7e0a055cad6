"""Join an HQ with a token.

Two connections. The first verifies nothing and trusts nothing: it fetches the root certificate,
whose fingerprint must match the token's. The second is verified against that root; it carries the
token's secret and a signing request for the key made here. Then the client's own keys are made, and
their bundle is registered over a third connection, the first with the new certificate.

Each file is written when its content is known, ``client.toml`` last: a home without it is
unfinished, and joining again with the same token resumes with the same key, as HQ requires. While
an admin must approve, or the CA is offline, `join` polls until the token expires.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.checks import checked
from cipherbox.classes import frozen
from cipherbox.client.comeback import come_back, next_key, returning, undone
from cipherbox.client.connection.connection import Connection, open_connection
from cipherbox.client.home import CERTIFICATE, IDENTITY, ISSUING, KEY, ROOT, home_with
from cipherbox.client.keys.local_key import (
    LOCAL_KEY,
    Password,
    configured_password,
    is_sealed,
    local_key_file,
    open_local_key,
    password_bytes,
    put_local_key,
    read_password,
)
from cipherbox.client.keys.strength import check_strength
from cipherbox.concurrency import Backoff, only, retry
from cipherbox.config.proxies import LineSettings
from cipherbox.config.settings import SIGNATURES, ClientConfig, write_client_config
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.envelope.suites import SUITES
from cipherbox.errors import (
    BundleNotCertified,
    CipherBoxError,
    CredentialsError,
    EnrolmentRefused,
    NetworkError,
    NotValidNow,
    TokenError,
)
from cipherbox.net import tls
from cipherbox.pki.profile import OutOfDate
from cipherbox.portable import private_dir, read_private, write_atomic, write_private
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.wire import frames
from cipherbox.wire.token import Token, decode_token

PENDING = "joining.json"
ISSUED, WAITS_FOR_APPROVAL, WAITS_FOR_CA = 0, 1, 2
WAITING = {
    WAITS_FOR_APPROVAL: "waiting until the admin approves it (cipherbox approve)",
    WAITS_FOR_CA: "waiting until the requests are carried to the offline CA and back",
}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
NETWORK_TRIES, NETWORK_PAUSE_S = 3, 0.5
_ASKED = 4  # clients for an example
# on_number(number) once, then on_number(number, waiting=text) when it has to wait
OnNumber = Callable[..., None]


@frozen
class JoinReport:
    """The result of `join`."""

    client_id: str
    role: str
    home: Path
    number: str
    address: str
    hq: str
    fingerprint: str  # of the root certificate, hexadecimal
    other: str = ""  # some other client with keys, for an example; empty: none yet
    # the home was this client's before: it kept its data and has new keys
    came_back: bool = False


@checked
async def join(
    home: Path | str,
    token_text: str,
    *,
    on_number: OnNumber | None = None,
    timeout_s: float = 10.0,
    pause_s: float = FIRST_PAUSE_S,
    password: Password | None = None,
    signatures: str | None = None,
    line: LineSettings | None = None,
) -> JoinReport:
    """Enrol this machine: make keys, get a certificate, register the key bundle, write ``home``,
    and return the result.

    A home of the same client that was revoked or replaced rejoins with new keys and keeps its data.

    ``signatures`` is ed25519 (None: that, or the home's setting) or ed25519+mldsa65. With
    ``password`` the keys are encrypted under it from the first write; an interrupted attempt only
    resumes with the same password: otherwise WrongPassword or PasswordNeeded is raised. ``line`` is
    the proxy to use now and later; without it the environment's, if any.

    Raise TokenError if the token is damaged, has expired, or belongs to another HQ;
    EnrolmentRefused with HQ's reason; NetworkError if HQ is unreachable: join again with the same
    token.
    """
    token = decode_token(token_text)
    where, before = _home(Path(home), token)
    _check_time(token)
    begun = _begun(where, token)
    key, local_key = _keys(where, token, password, before, begun=begun)
    number = pki.enrol_number(token.root_fingerprint, pki.spki(key.public_key()))
    line = line or (before.line if before is not None else LineSettings())
    signatures = signatures or (before.signatures if before is not None else SIGNATURES[0])
    root = await fetch_root(token, timeout_s, line)
    if on_number is not None:
        on_number(number)
    with undone(where, PENDING) if before is not None and not begun else nullcontext():
        chain = await _certificate(token, root, key, number, on_number, timeout_s, pause_s, line)
    write_atomic(where / ROOT, pki.pem(root))
    if before is None:
        write_atomic(where / ISSUING, pki.pem(*chain[1:]))
        write_atomic(where / CERTIFICATE, pki.pem(*chain))
    context = tls.client_context(root, chain, key)
    async with open_connection(
        token.address, context, timeout_s=timeout_s, line=line
    ) as connection:
        role, hq = _identified(connection.welcome, token.client_id), connection.welcome.software
        fresh = Identity.generate(token.client_id, SUITES[signatures]) if role != "admin" else None
        if before is not None:
            await come_back(connection, before, fresh, chain, key, local_key, timeout_s)
        elif fresh is not None:
            await _register(connection, where, fresh, chain, key, local_key, timeout_s)
        other = await _other(connection, token.client_id, timeout_s)
    known = before or ClientConfig(where, token.client_id, token.address, role)
    config = attrs.evolve(known, address=token.address, role=role, signatures=signatures, line=line)
    _finish(config, before, local_key)
    root_hex, back = token.root_fingerprint.hex(), before is not None
    return JoinReport(
        token.client_id, role, where, number, token.address, hq, root_hex, other, back
    )


def _identified(welcome: frames.Welcome, client_id: str) -> str:
    """Return the role that HQ gave; raise CredentialsError if it identified another client."""
    if welcome.client_id != client_id:
        raise CredentialsError(
            f"HQ identified this client as {welcome.client_id!r}, expected {client_id}"
        )
    return welcome.role


def _finish(config: ClientConfig, before: ClientConfig | None, local_key: bytes) -> None:
    """Write `client.toml` last, and check that the home opens."""
    if config != before:
        write_client_config(config)
    (config.home / PENDING).unlink(missing_ok=True)
    home_with(config, local_key)


async def _other(connection: Connection, client_id: str, timeout_s: float) -> str:
    """Return another client that has keys, for an example that works; empty if none is found."""
    try:
        page: frames.Listing = await connection.ask(
            frames.List, timeout_s, what="clients", name="", after=""
        )
        names = [row["name"] for row in orjson.loads(page.rows) if row["name"] != client_id][
            :_ASKED
        ]
        wanted = [frames.BundleQuery(name, 0) for name in names]
        found: frames.Bundles = await connection.ask(
            frames.GetBundles, timeout_s, clients=wanted, hashes=[]
        )
        return next(
            (name for name, answer in zip(names, found.answers, strict=False) if answer.bundles), ""
        )
    except (CipherBoxError, ValueError):
        return ""


def _home(home: Path, token: Token) -> tuple[Path, ClientConfig | None]:
    where = home.absolute()
    return where, returning(where, token)


def _check_time(token: Token) -> None:
    if token.expires_at <= clock.now_s() * 1000:
        end = datetime.datetime.fromtimestamp(token.expires_at / 1000, datetime.UTC)
        raise TokenError(
            f"the token expired on {end:%Y-%m-%d %H:%M} UTC (or this machine's clock is wrong)"
        )


def _mark(token: Token) -> dict[str, str]:
    """Return what is written to `joining.json`."""
    return {"client_id": token.client_id, "token": hashlib.sha256(token.secret).hexdigest()}


def _begun(home: Path, token: Token) -> bool:
    """Return whether an attempt with this token was interrupted here."""
    try:
        return bool(orjson.loads((home / PENDING).read_bytes()) == _mark(token))
    except (OSError, orjson.JSONDecodeError):
        return False


def _keys(
    home: Path,
    token: Token,
    password: Password | None,
    before: ClientConfig | None,
    *,
    begun: bool,
) -> tuple[pki.PrivateKey, bytes]:
    """Return the key of this enrolment and the local key: those of an interrupted attempt with the
    same token (``begun``), or new ones. A home that rejoins keeps its local key.
    """
    if password is not None:
        password = password_bytes(password)
    mark = orjson.dumps(_mark(token))
    held = (
        configured_password(before)
        if before is not None and password is None and is_sealed(home)
        else None
    )
    if held is not None:
        password = read_password(held)
    if before is not None or (begun and (home / KEY).exists()):
        local_key = open_local_key(home, password)
        if password is not None and not is_sealed(home):
            put_local_key(home, local_key, check_strength(password, [token.client_id]))
        if before is not None:
            key = next_key(home, local_key, begun=begun)
            write_private(home / PENDING, mark)
            return key, local_key
        return pki.load_key(read_private(home / KEY), local_key, str(home / KEY)), local_key
    if password is not None:
        check_strength(password, [token.client_id])
    private_dir(home)
    local_key = os.urandom(32)
    key = pki.new_key()
    for name in (PENDING, IDENTITY):
        (home / name).unlink(missing_ok=True)
    write_private(home / LOCAL_KEY, local_key_file(local_key, password))
    write_private(home / KEY, pki.key_pem(key, local_key))
    write_private(home / PENDING, mark)
    return key, local_key


async def fetch_root(token: Token, timeout_s: float, line: LineSettings) -> x509.Certificate:
    async def ask(connection: Connection) -> frames.Root:
        answer: frames.Root = await connection.ask(frames.GetRoot, timeout_s)
        return answer

    answer = await _connected(token, tls.first_contact_context(), timeout_s, ask, line)
    if hashlib.sha256(answer.root).digest() != token.root_fingerprint:
        raise TokenError(
            "the server at this address is not the HQ that issued the token: the fingerprint of "
            "its root certificate differs"
        )
    return pki.load_der(answer.root)


async def _certificate(
    token: Token,
    root: x509.Certificate,
    key: pki.PrivateKey,
    number: str,
    on_number: OnNumber | None,
    timeout_s: float,
    pause_s: float,
    line: LineSettings,
) -> list[x509.Certificate]:
    context = tls.client_context(root, None, None)
    csr = pki.make_csr(key, token.client_id)

    async def ask(connection: Connection) -> frames.Certificate:
        answer: frames.Certificate = await connection.ask(
            frames.RequestCertificate,
            timeout_s,
            client_id=token.client_id,
            secret=token.secret,
            csr=csr,
        )
        return answer

    told, backoff = None, Backoff(pause_s, LONGEST_PAUSE_S, factor=1.5)
    while True:
        answer = await _connected(token, context, timeout_s, ask, line)
        if answer.number and answer.number != number:
            raise EnrolmentRefused(
                f"HQ shows the number {answer.number}, this machine {number}: possible "
                "man-in-the-middle"
            )
        if answer.state == ISSUED:
            return checked_chain(answer.chain, root, key, token.client_id)
        if answer.state not in WAITING:
            raise EnrolmentRefused(
                f"HQ answered with the unknown state {answer.state}",
                remedy="update this program",
            )
        if on_number is not None and told != answer.state:
            told = answer.state
            on_number(number, waiting=WAITING[answer.state])
        left_s = token.expires_at / 1000 - clock.now_s()
        if left_s <= 0:
            raise TokenError(
                "the token expired while the enrolment was waiting",
                remedy="ask the admin for a new one",
            )
        await trio.sleep(min(backoff.next(), left_s))


def checked_chain(
    chain: list[bytes], root: x509.Certificate, key: pki.PrivateKey, client_id: str
) -> list[x509.Certificate]:
    """Return HQ's certificates if the root certifies them and they are for this client and this
    key.
    """
    try:
        certificates = [pki.load_der(der) for der in chain]
        leaf = pki.verify_chain(chain, root, clock.now())
    except OutOfDate as error:
        raise NotValidNow(f"HQ sent a certificate that is not valid now: {error}") from None
    except BundleNotCertified as error:
        raise CredentialsError(f"HQ sent an invalid certificate: {error}") from None
    if len(certificates) < 2:
        raise CredentialsError("HQ sent a certificate without its issuing CA")
    found: Any = leaf.public_key()
    if pki.common_name(leaf) != client_id or pki.spki(found) != pki.spki(key.public_key()):
        raise CredentialsError("HQ sent a certificate for another client or another key")
    return certificates


async def _register(
    connection: Connection,
    home: Path,
    fresh: Identity,
    chain: list[x509.Certificate],
    key: pki.PrivateKey,
    local_key: bytes,
    timeout_s: float,
) -> None:
    """Register the bundle of this client's keys, reusing the keys of an interrupted attempt."""
    path = home / IDENTITY
    client_id = fresh.client_id
    identity = keyfile.load(path, local_key=local_key) if path.exists() else fresh
    if identity.bundle is None:
        answer: frames.Bundles = await connection.ask(
            frames.GetBundles,
            timeout_s,
            clients=[frames.BundleQuery(client_id, frames.NEWEST)],
            hashes=[],
        )
        # of a former enrolment whose keys were lost
        before = [decode_bundle(raw) for raw in answer.answers[0].bundles]
        last = max(before, key=lambda b: b.sequence, default=None)
        identity.bundle = identity.make_bundle(key, chain, clock.now_ms(), last)
        keyfile.save(path, identity, local_key=local_key)
    await connection.ask(frames.Register, timeout_s, bundle=identity.bundle.raw)


async def _connected(
    token: Token,
    context: Any,
    timeout_s: float,
    ask: Callable[[Connection], Any],
    line: LineSettings,
) -> Any:
    """Run one request over a short connection, retrying network errors."""

    async def once() -> Any:
        async with open_connection(
            token.address, context, timeout_s=timeout_s, line=line
        ) as connection:
            return await ask(connection)

    return await retry(
        once, Backoff(NETWORK_PAUSE_S), tries=NETWORK_TRIES, transient=only(NetworkError)
    )
