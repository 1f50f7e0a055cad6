"""Every bound of the system with its reason, and the rules for names.

Sizes are bytes; times are milliseconds or seconds, as the ending of the name says.  Limits that
both ends must agree on, or that clients keep themselves, are fixed (`toml_file.FIXED_LIMITS`); the
others are settings of HQ, and WELCOME states those that clients must know.
"""

from __future__ import annotations

import re
import unicodedata

from cipherbox.classes import frozen
from cipherbox.errors import InvalidRequest


@frozen
class Limits:
    """The bounds; the comment at each gives the reason for its value."""

    # Frames and the opening.
    # HELLO fits in 200; garbage read as a length is detected immediately
    first_frame_bytes: int = 1024
    # a signing request is under 1 KiB; without a certificate, no more memory
    anonymous_frame_bytes: int = 16 * 1024
    frame_bytes: int = 17 * 1024 * 1024  # the largest envelope and the frame's other fields
    client_hello_s: float = 10.0  # for TLS handshake and HELLO; a slow satellite link needs 3
    anonymous_s: float = 15.0  # a connection without a certificate may only enrol, and soon
    heartbeat_s: int = 30  # a dead connection is detected after two of these
    stop_s: float = 10.0  # how long a graceful stop waits for work in progress
    # connections before HELLO; a NAT in front of a thousand clients needs more
    greeting_per_address: int = 256
    greeting: int = 2048  # connections before HELLO in total; the oldest silent one makes room
    # connections without a certificate: a classroom that joins simultaneously
    anonymous_per_address: int = 64
    handshakes_at_once: int = 64  # half-open handshakes use memory; slow ones no longer count
    # TLS steps per turn of HQ's loop: each takes 2 ms, during which all else waits
    handshake_steps: int = 1
    connections: int = 4096  # about 45 KB each
    connections_per_client: int = 64  # one lab's loop must not use up every connection

    # Envelopes.
    envelope_bytes: int = 16 * 1024 * 1024  # larger content is sent as a series of envelopes
    prefix_bytes: int = 64 * 1024  # 256 recipients of the longest names need 21 KiB
    recipients: int = 256  # the client splits above
    messages: int = 65_536  # the low 16 bits of an id count the messages
    stanza_bytes: int = 2048  # X-Wing needs 1,168; RSA-4096 512; a ratchet header under 1,700
    rsa_bits_least: int = 2048  # the least that NIST SP 800-57 still permits
    rsa_bits_most: int = 4096  # twice the bits cost the recipient eight times the time per envelope
    message_headers: int = 32  # metadata of an application, not a place for content
    header_key_bytes: int = 255
    header_value_bytes: int = 4096
    content_type_bytes: int = 255
    # keys (5 KiB), certificates (8 KiB), two signatures of both algorithms (7 KiB)
    bundle_bytes: int = 24 * 1024
    # of one client in one response: 768 KiB; the client requests the rest
    bundles_per_answer: int = 32
    receipt_bytes: int = 1024 * 1024  # 65,536 outcomes and a path
    clock_ahead_ms: int = 24 * 3600 * 1000  # an id from further in the future means a wrong clock

    # Files.
    # larger files are sent in parts; smaller ones are one message
    file_from_bytes: int = 8 * 1024 * 1024
    # of a file: parts in flight fit into memory on every side, and one into a processor's cache;
    # parts of 2 MiB take HQ a third more CPU time
    part_bytes: int = 1024 * 1024
    part_bytes_most: int = 8 * 1024 * 1024  # accepted from others
    parts: int = 240_000  # of one file: their hashes fit into one manifest
    path_names: int = 32  # directories above a file
    entries: int = 50_000  # files of a directory sent as a unit: their names fit into one manifest
    parts_in_flight: int = 16  # unconfirmed; each is read once and held until HQ has it

    # Batching and windows.
    batch_bytes: int = 1024 * 1024  # a full envelope of the publisher
    batch_messages: int = 8192  # a larger batch gains nothing measurable
    # partly filled envelopes unconfirmed; more would only make batches smaller
    open_batches: int = 2
    publish_window: int = 2048  # unconfirmed envelopes of one connection: two commits of a busy HQ
    publish_window_bytes: int = 32 * 1024 * 1024  # their bytes
    # the largest credit of a consumer: what is in transit during a few commits
    credit_envelopes: int = 8192
    credit_bytes: int = 32 * 1024 * 1024  # its bytes
    deliver_frame_bytes: int = 256 * 1024  # small deliveries share a frame up to this size
    ranges_per_frame: int = 4096  # acks and confirms
    names_per_frame: int = 1024  # clients in one key request, rows of one list page

    # The broker.
    name_bytes: int = 127  # exchange, queue and routing key
    queues_per_client: int = 64  # in addition to its mailboxes
    bindings_per_queue: int = 256  # a topic exchange matches them one by one
    queues: int = 100_000  # about 1 KB of memory each when empty
    exchanges: int = 10_000  # far more than an organization names
    consumers_per_queue: int = 256  # served in turn
    head_entries: int = 10_000  # of a queue, in memory; the rest stays in the store
    page_entries: int = 5_000  # read from the store when a queue's head runs low
    ack_entries: int = 65_536  # envelopes in one ack: eight full windows; each costs a look-up
    engine_commands: int = 1024  # waiting for the engine; beyond that, readers wait
    engine_bytes: int = 64 * 1024 * 1024  # of publishes waiting for the engine
    # one transaction; a larger one only delays the first confirm
    batch_commit_bytes: int = 32 * 1024 * 1024
    # recently published bodies, for consumers that keep up
    body_cache_bytes: int = 64 * 1024 * 1024
    # high water mark: envelopes held for all connections; above it publishers wait
    memory_high_bytes: int = 256 * 1024 * 1024
    # low water mark: publishers continue below it; lower by a few large envelopes
    memory_low_bytes: int = 192 * 1024 * 1024
    # one client's share; above it only that client waits
    memory_per_client_bytes: int = 64 * 1024 * 1024
    # a large frame that moves slower, in or out, ends its connection
    slowest_bytes_per_s: int = 16 * 1024
    # interval at which that is checked; retransmitting a lost packet or two takes 7 s
    progress_s: float = 10.0
    spool_from_bytes: int = 64 * 1024  # larger bodies are files: faster from this size
    quota_bytes: int = 4 * 1024 * 1024 * 1024  # of one sender in one queue, dead letters included
    # in all queues: four full ones; each queue counts separately
    bytes_per_client: int = 16 * 1024 * 1024 * 1024
    envelopes_per_client: int = 1_000_000  # in all queues: half a GB of rows
    # ever: one rotation a month for ten years; senders receive them all
    bundles_per_client: int = 128
    # valid at the same time: renewal at two thirds of a year needs two
    certificates_per_client: int = 16
    # reserved for acks and deletions while publishes are refused
    disk_reserve_bytes: int = 64 * 1024 * 1024
    # free space beside the reserve before publishes are accepted again after a full disk
    disk_resume_bytes: int = 128 * 1024 * 1024
    deliveries: int = 20  # of one envelope; then it is a dead letter
    watermark_ms: int = 400 * 24 * 3600 * 1000  # how long records of ids are kept

    # Enrolment and requests.
    token_s: int = 24 * 3600  # time to transfer a token, not to leave it lying around
    token_bytes: int = 1024
    # per token; and per address with unknown secrets, which have 128 bits
    enrol_attempts_per_minute: int = 60
    pending_requests: int = 1000  # nobody would review more one by one
    # points for frames that move envelopes, per client: five times HQ's capacity
    flow_per_minute: int = 3_000_000
    # points for other requests, per client: 120 changes, 300 pages or 6,000 look-ups
    requests_per_minute: int = 6_000
    key_requests_per_minute: int = 60  # per client, as in the relay of a predecessor
    # clients queried, per requester: one envelope for 256 begins 256 sessions
    prekey_requests_per_minute: int = 300
    # one-time prekeys of one client per requester; then the last-resort key
    prekeys_of_one_per_minute: int = 2
    prekeys_per_client: int = 256  # one-time prekeys kept at HQ: 320 KB
    requests_in_flight: int = 1024  # per connection, publishes excluded


LIMITS = Limits()

CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{d}{n}" for d in ("com", "lpt") for n in range(10)),
    ]
)


def check_client_id(text: str) -> str:
    """Return ``text`` if it is a client id: ``[A-Za-z0-9][A-Za-z0-9_-]{0,62}`` and not a Windows
    device name; raise InvalidRequest otherwise.
    """
    if not CLIENT_ID.fullmatch(text):
        raise InvalidRequest(
            f"invalid client id {text[:80]!r}: must be 1 to 63 letters, digits, '-' and '_', and "
            "begin with a letter or digit"
        )
    if text.casefold() in _DEVICES:
        raise InvalidRequest(f"{text!r} is a device name on Windows and cannot be a client id")
    return text


def check_name(text: str, what: str) -> str:
    """Return ``text`` if it may name an exchange, a queue or a routing key: 1 to 127 bytes, no
    control characters; raise InvalidRequest otherwise.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= LIMITS.name_bytes:
        raise InvalidRequest(f"invalid {what}: {size} bytes, must have 1 to {LIMITS.name_bytes}")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text):
        raise InvalidRequest(f"invalid {what} {text!r}: control characters are not allowed")
    return text
