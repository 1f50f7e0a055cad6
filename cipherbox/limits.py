"""Every bound of the system in one place, each with its reason, and the rules for names.

Sizes are bytes, times are milliseconds or seconds as the name's ending says.  What both ends must
agree on, and what clients keep for themselves, is fixed (`configfile.FIXED_LIMITS`); the rest can
be set in HQ's configuration, and what clients must know of it is told to them in WELCOME.
"""

from __future__ import annotations

import re
import unicodedata

import attrs

from cipherbox.errors import InvalidRequest


@attrs.frozen
class Limits:
    """The bounds; the comment behind each says why it has this value."""

    # Frames and the opening.
    first_frame_bytes: int = 1024  # HELLO fits in 200; garbage read as a length is caught at once
    # a signing request is under 1 KiB; no certificate, no more memory
    anonymous_frame_bytes: int = 16 * 1024
    frame_bytes: int = 17 * 1024 * 1024  # the largest envelope and its frame's other fields
    client_hello_s: float = 10.0  # TLS handshake and HELLO; a slow satellite line needs 3
    anonymous_s: float = 15.0  # a connection without a certificate may only enrol, and soon
    heartbeat_s: int = 30  # a dead line is noticed after two of these
    stop_s: float = 10.0  # how long a graceful stop waits for what is under way
    # connections before HELLO; a NAT with a thousand clients behind it needs more
    greeting_per_address: int = 256
    greeting: int = 2048  # in all; the oldest that said nothing makes room
    anonymous_per_address: int = 64  # without a certificate: a classroom that joins at once
    handshakes_at_once: int = 64  # half open ones cost memory; one that takes long no longer counts
    # of TLS in one turn of HQ's loop: each takes 2 ms, in which everybody else waits
    handshake_steps: int = 1
    connections: int = 4096  # about 45 KB each
    connections_per_client: int = 64  # one lab's loop must not take every place

    # Envelopes.
    envelope_bytes: int = 16 * 1024 * 1024  # larger content travels as a run of envelopes
    prefix_bytes: int = 64 * 1024  # 256 recipients of the longest names need 21 KiB
    recipients: int = 256  # the client splits above
    messages: int = 65_536  # the low 16 bits of an id count the messages
    stanza_bytes: int = 2048  # X-Wing needs 1,168; RSA-4096 512; a ratchet header under 1,700
    rsa_bits_least: int = 2048  # what NIST SP 800-57 still allows
    # twice the bits cost the recipient eight times the time for every envelope
    rsa_bits_most: int = 4096
    message_headers: int = 32  # what an application adds, not a place for content
    header_key_bytes: int = 255
    header_value_bytes: int = 4096
    content_type_bytes: int = 255
    # keys (5 KiB), certificates (8 KiB), two signatures of both algorithms (7 KiB)
    bundle_bytes: int = 24 * 1024
    # of one client, in HQ's answer: 768 KiB of them; the rest is asked for again
    bundles_per_answer: int = 32
    receipt_bytes: int = 1024 * 1024  # 65,536 outcomes and a path
    clock_ahead_ms: int = 24 * 3600 * 1000  # an id from further in the future is a wrong clock

    # Files.
    # larger files travel in parts; smaller ones are a message
    file_from_bytes: int = 8 * 1024 * 1024
    part_bytes: int = 2 * 1024 * 1024  # of a file: what is in flight fits into memory on every side
    part_bytes_most: int = 8 * 1024 * 1024  # taken from others
    parts: int = 240_000  # of one file: their hashes fit into one manifest
    path_names: int = 32  # directories above a file
    # files of a directory that is sent as one: their names fit into one manifest
    entries: int = 50_000
    parts_in_flight: int = 8  # unconfirmed; each is read once and held until HQ has it

    # Batching and windows.
    batch_bytes: int = 1024 * 1024  # a full envelope of the publisher
    batch_messages: int = 8192  # beyond it a larger batch gains nothing measurable
    # partly filled envelopes unconfirmed; more would only cut batches smaller
    open_batches: int = 2
    publish_window: int = 2048  # unconfirmed envelopes of one connection: two commits of a busy HQ
    publish_window_bytes: int = 32 * 1024 * 1024  # and their bytes
    # the largest credit a consumer may hold: what is under way in a few commits
    credit_envelopes: int = 8192
    credit_bytes: int = 32 * 1024 * 1024  # and their bytes
    deliver_frame_bytes: int = 256 * 1024  # small deliveries share a frame up to this
    ranges_per_frame: int = 4096  # acks and confirms
    names_per_frame: int = 1024  # clients in one key request, rows of one list page

    # The broker.
    name_bytes: int = 127  # exchange, queue and routing key
    queues_per_client: int = 64  # beside its mailboxes
    bindings_per_queue: int = 256  # matched one by one on a topic exchange
    queues: int = 100_000  # about 1 KB of memory each when empty
    exchanges: int = 10_000  # far above what an organisation names
    consumers_per_queue: int = 256  # taken in turn
    head_entries: int = 10_000  # of a queue, in memory; the rest stays in the store
    page_entries: int = 5_000  # read at once when a head runs low
    ack_entries: int = 65_536  # envelopes one ack may name: eight full windows; each costs a look
    engine_commands: int = 1024  # waiting for the engine; then readers wait
    engine_bytes: int = 64 * 1024 * 1024  # of publishes waiting for the engine
    # one transaction; a larger one only delays the first confirm
    batch_commit_bytes: int = 32 * 1024 * 1024
    body_cache_bytes: int = 64 * 1024 * 1024  # bodies just published, for consumers that keep up
    # of envelopes held for all peers together; above it publishers wait
    memory_high_bytes: int = 256 * 1024 * 1024
    memory_low_bytes: int = 192 * 1024 * 1024  # below it they go on: a few large envelopes apart
    # of that, one client; above it that client waits alone
    memory_per_client_bytes: int = 64 * 1024 * 1024
    # a large frame that moves slower, in or out, ends its connection
    slowest_bytes_per_s: int = 16 * 1024
    # so often that is looked at; a lost packet or two take 7 s to come again
    progress_s: float = 10.0
    spool_from_bytes: int = 64 * 1024  # larger bodies are files: faster from here on
    quota_bytes: int = 4 * 1024 * 1024 * 1024  # of one sender in one queue, dead letters with it
    # in all queues: four that are full; each queue counts for itself
    bytes_per_client: int = 16 * 1024 * 1024 * 1024
    envelopes_per_client: int = 1_000_000  # in all queues: half a GB of rows
    bundles_per_client: int = 128  # ever: a rotation a month for ten years; senders get them all
    certificates_per_client: int = 16  # that hold: a renewal two thirds through a year needs two
    # kept for acks and deletes when publishes are refused
    disk_reserve_bytes: int = 64 * 1024 * 1024
    # so much more must be free before publishes are taken again
    disk_resume_bytes: int = 128 * 1024 * 1024
    deliveries: int = 20  # of one envelope; then it is a dead letter
    watermark_ms: int = 400 * 24 * 3600 * 1000  # records of ids are kept this long

    # Enrolment and requests.
    token_s: int = 24 * 3600  # time to hand it over, not to lie around
    token_bytes: int = 1024
    # of one token; and of one address with unknown secrets, which have 128 bits
    enrol_attempts_per_minute: int = 60
    pending_requests: int = 1000  # more would not be looked at one by one
    # points of frames that move envelopes, per client: five times what HQ can do
    flow_per_minute: int = 3_000_000
    # points of other requests, per client: 120 changes, 300 pages or 6,000 look-ups
    requests_per_minute: int = 6_000
    key_requests_per_minute: int = 60  # per client, as the relay of the predecessors had it
    # clients asked about, per asker: one envelope for 256 begins 256 sessions
    prekey_requests_per_minute: int = 300
    # one-time prekeys of one client for one asker; then the last resort
    prekeys_of_one_per_minute: int = 2
    prekeys_per_client: int = 256  # one-time prekeys kept at HQ: 320 KB
    requests_in_flight: int = 1024  # per connection, other than publishes


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
    """``text`` if it is a client id: ``[A-Za-z0-9][A-Za-z0-9_-]{0,62}`` and no device name of
    Windows.
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
    """``text`` if it may name an exchange, a queue or a routing key: 1 to 127 bytes, no control
    characters.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= LIMITS.name_bytes:
        raise InvalidRequest(f"a {what} has 1 to {LIMITS.name_bytes} bytes, this one has {size}")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text):
        raise InvalidRequest(f"a {what} holds no control characters: {text!r}")
    return text
