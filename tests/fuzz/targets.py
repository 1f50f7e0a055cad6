"""Every parser of bytes that others send or store, with the errors it documents and good bytes to
begin from.

The rule: a parser answers with its value or with one of its documented errors, in bounded time and
memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import nacl.signing
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import clock, errors, pki
from cipherbox.apps.pipe.frames import Frame, Kind, read_frame
from cipherbox.client.publishing.parts import (
    Manifest,
    manifest_message,
    part_message,
    read_manifest,
    read_part,
)
from cipherbox.envelope import bundle, checkpoint, evidence, group, prefix, prekeys, receipt, rsa
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import receipt_file as receiptfile
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.labels import label
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.envelope.suites import KeyUsage
from cipherbox.net.websocket import accept_websocket
from cipherbox.pki.revocation_lists import lists_in, make_crl, read_crl
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing import open as opening
from cipherbox.sealing.body import Message, pack, text_message, unpack
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.server.ca.credentials import is_ca
from cipherbox.server.ca.offline import read_requests
from cipherbox.server.ca.signed_responses import for_hq, read_signed
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import WireConnection
from cipherbox.wire.token import decode_token
from tests.golden import files as golden
from tests.parties import party, world

Bytes = Iterator[bytes]
STATES = Path(__file__).parent.parent / "sealing" / "sessions" / "states_version_1.json"
SAMPLES = Path(__file__).parent.parent / "data"


@attrs.frozen
class Target:
    """A parser: ``read`` answers or raises one of ``refusals``; ``seeds`` are bytes it takes."""

    name: str
    read: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    seeds: Callable[[], Bytes]
    slow: bool = False  # some milliseconds for each input


TARGETS: dict[str, Target] = {}
_Read = Callable[[bytes], object]


def target(
    name: str, seeds: Callable[[], Bytes], *refusals: type[BaseException], slow: bool = False
) -> Callable[[_Read], _Read]:
    """Puts a function into the table."""

    def put(read: _Read) -> _Read:
        TARGETS[name] = Target(name, read, refusals, cache(lambda: tuple(seeds())), slow)  # type: ignore[arg-type]
        return read

    return put


def hexes(name: str, *keys: str) -> Bytes:
    """All bytes of a golden file that stand under one of the keys, and in none of its lists of
    failures.
    """

    def walk(value: Any) -> Bytes:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in keys and isinstance(inner, str):
                    with suppress(ValueError):
                        yield bytes.fromhex(inner)
                elif key not in ("fails", "bad_bundles"):
                    yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    with suppress(FileNotFoundError):
        yield from walk(golden.read(name))


# -- the envelope ----------------------------------------------------------------------------------


def envelopes() -> Bytes:
    for name in ("envelopes", "envelopes_v1", "rsa", "sessions"):
        yield from hexes(name, "envelope")


@target("prefix", envelopes, errors.EnvelopeError)
def _(data: bytes) -> object:
    return prefix.decode_prefix(data)


@target("envelope", envelopes, errors.EnvelopeError)
def _(data: bytes) -> object:
    return opening.parse_envelope(data)


def bodies() -> Bytes:
    many = [
        text_message("grün"),
        Message(b"\x00" * 99, "image/png", {"filename": "a.png", "n": "1"}),
        text_message(""),
    ]
    for messages in (many, many[:1], [Message(b"a,b", "text/csv", {}, 1_700_000_000_000)] * 3):
        yield bytes([len(messages)]) + pack(messages)


@target("body", bodies, errors.EnvelopeError)
def _(data: bytes) -> object:
    return list(unpack(data[1:], data[0] if data else 0, 1))


def manifests() -> Bytes:
    for path, size, sums in ((("run", "a.tif"), 5_000_000, (b"h" * 32,) * 3), (("empty",), 0, ())):
        yield manifest_message(
            Manifest(b"t" * 16, path, size, 1 << 21, sums, 1, "image/tiff")
        ).content


@target("manifest", manifests, errors.EnvelopeError)
def _(data: bytes) -> object:
    return read_manifest(data)


def parts() -> Bytes:
    for compress in (False, True):
        message = part_message(b"t" * 16, 3, 1 << 21, b"data" * 999, compress=compress)
        yield json.dumps(message.headers).encode() + b"\n" + message.content


@target("part", parts, errors.EnvelopeError)
def _(data: bytes) -> object:
    head, _, content = data.partition(b"\n")
    try:
        headers = {str(k): str(v) for k, v in json.loads(head).items()}
    except (ValueError, AttributeError):
        headers = {
            "transfer": (b"t" * 16).hex(),
            "part": "0",
            "part_bytes": str(1 << 21),
            "encoding": "zstd",
        }
    return read_part(Message(content, "", headers))


def pipe_frames() -> Bytes:
    return (Frame(kind, b"p" * 16, 7, 9, b"data").message().content for kind in Kind)


@target("pipe", pipe_frames, errors.EnvelopeError)
def _(data: bytes) -> object:
    return read_frame(data)


# -- keys and their certificates -------------------------------------------------------------------


def bundles() -> Bytes:
    for name in ("bundles", "envelopes", "rsa", "sessions", "receipts"):
        yield from hexes(name, "bundle")
    yield party("FL-LAB").bundle.raw
    yield party("MA-LAB", 2).bundle.raw


@target("bundle", bundles, errors.BundleError)
def _(data: bytes) -> object:
    found = bundle.decode_bundle(data)
    bundle.check_bundle(found, found.client_id, world().root.certificate, pki.ms(clock.now()))
    return found.sign_keys


@target("rsa-key", lambda: rsa_keys(), errors.BundleError)
def _(data: bytes) -> object:
    return rsa.load_public(data)


def rsa_keys() -> Bytes:
    for raw in golden.read("rsa")["recipient_bundles"].values():
        for key in bundle.decode_bundle(bytes.fromhex(raw)).keys:
            if (key.usage, key.algorithm) == (KeyUsage.ENCRYPT, StanzaType.RSA_OAEP):
                yield key.public


def prekey_parts() -> Bytes:
    yield from hexes("sessions", "signed", "once")


@target("prekeys", prekey_parts, errors.BundleError)
def _(data: bytes) -> object:
    return prekeys.decode_once(data) if data[:4] == prekeys.ONCE_MAGIC else prekeys.decode(data)


def chains() -> Bytes:
    yield b"".join(len(c).to_bytes(2, "big") + c for c in map(pki.der, party("FL-LAB").chain))


@target("chain", chains, errors.BundleError)
def _(data: bytes) -> object:
    found = []
    while data and len(found) < 6:
        size = 2 + int.from_bytes(data[:2], "big")
        found.append(data[2:size])
        data = data[size:]
    return pki.verify_chain(found, world().root.certificate, clock.now())


def lists() -> Bytes:
    for serials in ([], [("ab12", clock.now())] * 3):
        raw = make_crl(world().issuing, serials, 7)
        yield raw
        yield x509.load_der_x509_crl(raw).public_bytes(serialization.Encoding.PEM)


@target("revocation-list", lists, errors.CredentialsError)
def _(data: bytes) -> object:
    return [
        read_crl(raw, world().issuing.certificate, clock.now()) for raw in lists_in(data, "file")
    ]


@target(
    "request", lambda: iter([pki.make_csr(party("FL-LAB").key, "FL-LAB")]), errors.InvalidRequest
)
def _(data: bytes) -> object:
    return pki.key_of_csr(data)


def carried() -> Bytes:
    for name in ("requests.json", "signed.json"):
        text = golden.read("carried").get(name)
        if text:
            yield text.encode()
    yield pki.pem(*party("FL-LAB").chain)


@target("carried", carried, errors.InvalidRequest)
def _(data: bytes) -> object:
    try:
        signed = read_signed(data)
        return [for_hq(leaf) for leaf in signed.leaves], [is_ca(one) for one in signed.cas]
    except errors.InvalidRequest:
        return read_requests(data)


# -- receipts and the log --------------------------------------------------------------------------


@target("receipt", lambda: hexes("receipts", "exported"), errors.EnvelopeError)
def _(data: bytes) -> object:
    return receipt.decode_exported(data)


@target("receipts-of-a-group", lambda: hexes("receipt_group", "group"), errors.EnvelopeError)
def _(data: bytes) -> object:
    return group.decode_group(data)


def receipt_files() -> Bytes:
    import tarfile

    with tarfile.open(SAMPLES / "0.5.0.tar.xz") as archive:
        for info in archive:
            if info.name.endswith(".receipt.json"):
                found = archive.extractfile(info)
                assert found is not None
                yield found.read()
                return


@target("receipt-file", receipt_files, errors.EnvelopeError, errors.BundleError)
def _(data: bytes) -> object:
    return receiptfile.verify_file(data)


@target("log-entry", lambda: hexes("log", "body"), errors.EnvelopeError)
def _(data: bytes) -> object:
    found = log.decode_groups(data)
    for one in found:
        with suppress(errors.EnvelopeError):
            log.read_accepted(one.payload)
        with suppress(errors.EnvelopeError):
            log.read_bundle(one.payload)
    return found


@target("log-record", lambda: hexes("log", "record"), errors.EnvelopeError)
def _(data: bytes) -> object:
    return log.decode_record(data)


@target("log-proof", lambda: hexes("log", "proof", "proof_of_first"), errors.EnvelopeError)
def _(data: bytes) -> object:
    known = golden.read("log")
    one, key = known["entries"][0], bytes.fromhex(known["key"])
    for leaves in ([bytes.fromhex(leaf) for leaf in one["leaves"]], [bytes(52)]):
        with suppress(errors.SignatureInvalid):
            return log.verify_proof(data, one["sender"], leaves, key, one["accepted_at"])
    return log.proof_record(data), log.proof_checkpoint(data)


def notes() -> Bytes:
    known = golden.read("log")
    yield from (entry["checkpoint"].encode() for entry in known["entries"])
    yield known["witness"]["note"].encode()


@target("checkpoint", notes, errors.EnvelopeError)
def _(data: bytes) -> object:
    note = checkpoint.decode_note(data)
    with suppress(errors.SignatureInvalid):
        checkpoint.verify_checkpoint(data, bytes.fromhex(golden.read("log")["key"]))
    witness = checkpoint.read_verifier_key(golden.read("log")["witness"]["key"])
    return checkpoint.read_checkpoint(note.text), checkpoint.cosigned_at(note, witness)


@target(
    "witness-key",
    lambda: iter([golden.read("log")["witness"]["key"].encode()]),
    errors.InvalidRequest,
)
def _(data: bytes) -> object:
    return checkpoint.read_verifier_key(data.decode("utf-8", "surrogateescape"))


@target(
    "consistency",
    lambda: iter(
        [
            bytes([row["old"], row["new"]]) + b"".join(map(bytes.fromhex, row["proof"]))
            for row in golden.read("log")["consistency"]
        ]
    ),
)
def _(data: bytes) -> object:
    """No proof is an error of its own: it holds or it does not."""
    old, new = (data[0], data[1]) if len(data) > 1 else (0, 0)
    path = [data[at : at + 32] for at in range(2, len(data), 32)]
    return tree.is_consistent(old, b"o" * 32, new, b"n" * 32, path)


def evidences() -> Bytes:
    """Two heads of one size with different content, signed by a key that HQ's certificate stands
    behind.
    """
    signer, hq_key = nacl.signing.SigningKey(b"s" * 32), pki.new_key()
    key = bytes(signer.verify_key)
    certificate = pki.der(pki.issue_server(world().issuing, hq_key.public_key(), "DC-HQ"))
    certified = key + hq_key.sign(label("log-key") + key, ec.ECDSA(hashes.SHA384()))
    begun = checkpoint.read_checkpoint(checkpoint.decode_note(next(notes())).text)
    begun = begun._replace(origin=checkpoint.origin_of(key, begun.incarnation))
    first, second = (
        checkpoint.sign_checkpoint(begun._replace(root=root), signer)
        for root in (b"1" * 32, b"2" * 32)
    )
    yield evidence.make_file(
        evidence.Evidence(first, second, (b"p" * 32,), key, certified, certificate, 1, "FL-LAB")
    )


@target("evidence", evidences, errors.EnvelopeError)
def _(data: bytes) -> object:
    return evidence.verify_file(data)


# -- the wire --------------------------------------------------------------------------------------


def hello() -> bytes:
    return codec.encode(
        frames.Hello(frames.MAGIC, frames.VERSION, frames.VERSION, 1 << 25, 30, "fuzz")
    )


def streams() -> Bytes:
    """After the role of the end that reads: one frame each, and all of them one behind the
    other.
    """
    every = [bytes.fromhex(row["frame"]) for row in golden.read("frames")]
    for role in (b"\x00", b"\x01"):
        yield from (role + one for one in every)
    yield b"\x00" + hello() + b"".join(every)


@target("frames", streams, errors.ProtocolError)
def _(data: bytes) -> object:
    """Whole, and in pieces: the same events, or the same fault."""
    role = "client" if data[:1] == b"\x01" else "server"
    outcomes = []
    for step in (len(data) or 1, 7):
        connection, found = WireConnection(role), []
        try:
            for at in range(1, len(data), step):
                connection.receive_data(data[at : at + step])
                # a fault comes after the good frames before it
                while events := connection.events():
                    found += events
            outcomes.append((found, ""))
        except errors.ProtocolError as error:
            outcomes.append((found, str(error)))
    assert str(outcomes[0][1]) == str(outcomes[1][1]), outcomes
    return outcomes


@target(
    "frame",
    lambda: (bytes.fromhex(row["frame"])[4:] for row in golden.read("frames")),
    errors.ProtocolError,
)
def _(data: bytes) -> object:
    return codec.decode(data[0] if data else 0, data[1:])


@target("token", lambda: (row["text"].encode() for row in golden.read("token")), errors.TokenError)
def _(data: bytes) -> object:
    return decode_token(data.decode("utf-8", "surrogateescape"))


@contextmanager
def suppress_groups(*kinds: type[Exception]) -> Iterator[None]:
    """As `suppress`, also of what nurseries put into groups."""
    try:
        yield
    except kinds:
        pass
    except ExceptionGroup as group:
        _, rest = group.split(kinds)
        if rest is not None:
            raise rest from None


OPENING = (
    b"GET /cipherbox HTTP/1.1\r\nHost: hq\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@target(
    "websocket",
    lambda: iter(
        [
            OPENING,
            OPENING + b"\x82\x85abcd" + b"\x09\x07\x0f\x08\x0e",
            OPENING + b"\x88\x80abcd",
            OPENING + b"\x89\x80abcd",
            OPENING + b"\x02\x82abcd\x00\x00\x80\x82abcd\x00\x00",
            b"GET / HTTP/1.1\r\n\r\n",
        ]
    ),
    slow=True,
)
def _(data: bytes) -> object:
    async def read() -> None:
        near, far = trio.testing.memory_stream_pair()
        near.peer = "fuzz"  # type: ignore[attr-defined]
        async with trio.open_nursery() as nursery:
            await far.send_all(data)
            await far.send_eof()
            with trio.move_on_after(10):  # as HQ's lobby does
                stream = await accept_websocket(nursery, near)  # type: ignore[arg-type]
                with trio.fail_after(5):
                    while await stream.receive_some():
                        pass
            nursery.cancel_scope.cancel()

    with suppress_groups(errors.NetworkError, trio.BrokenResourceError):
        trio.run(read, clock=trio.testing.MockClock(autojump_threshold=0))
    return None


# -- files that hold secrets -----------------------------------------------------------------------

LOCAL = b"k" * 32


def key_files() -> Bytes:
    yield keyfile.encrypt(b"document", local_key=LOCAL)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys.cbk"
        keyfile.save(path, party("FL-LAB").identity, local_key=LOCAL)
        yield path.read_bytes()


@target("key-file", key_files, errors.CredentialsError, errors.PasswordError)
def _(data: bytes) -> object:
    return keyfile.decrypt(data, local_key=LOCAL)


def documents() -> Bytes:
    for raw in key_files():
        yield keyfile.decrypt(raw, local_key=LOCAL)


@target("key-document", documents, errors.ConfigError, errors.BundleError, slow=True)
def _(data: bytes) -> object:
    """What is inside, as who has the key could write it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys.cbk"
        path.touch(0o600)
        path.write_bytes(keyfile.encrypt(data, local_key=LOCAL))
        return keyfile.load(path, local_key=LOCAL)


@target(
    "private-key",
    lambda: iter([pki.key_pem(party("FL-LAB").key, LOCAL)]),
    errors.ConfigError,
    slow=True,
)
def _(data: bytes) -> object:
    return pki.load_key(data, LOCAL, "client.key")


@target("handshake", lambda: hexes("sessions", "handshake"), errors.EnvelopeError)
def _(data: bytes) -> object:
    return handshake.decode(data)


@target(
    "session-message", lambda: hexes("sessions", "stanza", "message", "raw"), errors.EnvelopeError
)
def _(data: bytes) -> object:
    return session.parse(data)


@target(
    "session-state",
    lambda: iter([bytes.fromhex(json.loads(STATES.read_text())["a"])]),
    errors.StoreError,
)
def _(data: bytes) -> object:
    return session.decode(data)
