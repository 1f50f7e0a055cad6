"""The table of frames: every kind, who may send it, its fields in order.

Encoding, decoding, the manual page `protocol` and the golden files are all made from this table, so
a frame is added here and nowhere else.  A request carries a correlation id chosen by its sender,
rising by one per request; its answer carries the same.  A receiver ignores unknown fields after
those it knows: a frame may grow at its end within a version.  Times are milliseconds since 1970 in
UTC, 0 where there is none.
"""

from __future__ import annotations

from cipherbox.wire.fields import (
    blob,
    flag,
    frame,
    id16,
    listing,
    record,
    rest,
    text8,
    text16,
    u8,
    u16,
    u32,
    u64,
)

MAGIC = 0x43425831  # "CBX1"
VERSION = 2
PREKEYS = 1  # bit 0 of WELCOME's features
KEEP = 0xFFFFFFFF  # leaves a queue's limit unchanged

# -- records: parts of frames ----------------------------------------------------------------------


@record
class Range:
    """A run of numbers: ``first``, ``first + 1``, … ``first + count - 1``."""

    first: int = u64("the first number")
    count: int = u32("number of them, 1 or more")


@record
class ConfirmRange:
    """A run of correlation ids of SEND with one outcome."""

    first: int = u64("the first correlation id")
    count: int = u32("number of them, 1 or more")
    outcome: int = u8("0 stored now; 1 duplicate: the same bytes were stored before")
    place: int = u16("index into `places`")


@record
class LogEntry:
    """An entry of HQ's signed log."""

    record: bytes = blob("leaf of the log's tree; in the log before 0.6: the head")
    body: bytes = blob("the groups of the entry, see the log manual page")
    signature: bytes = blob("in the log before 0.6: signature of the head; else empty")


@record
class EnvelopeName:
    """Identifies an envelope globally."""

    sender_id: str = text8("client id of its sender")
    envelope_id: bytes = id16("its id")


@record
class LogStatement:
    """A group of HQ's log and the proof that the log contains it."""

    kind: int = u8("of the group; 0: none found")
    payload: bytes = blob("of the group")
    proof: bytes = blob("inclusion proof in the log")


@record
class Place:
    """The queues an envelope was stored in, and the recipients a partial publish did not reach."""

    queues: list[str] = listing(text8, "queue names")
    missing: list[str] = listing(
        text8, "recipients without a queue, or that block this sender; if partial"
    )


@record
class Delivered:
    """One envelope delivered to a consumer."""

    seq: int = u64("its number in the queue, which acks refer to")
    attempt: int = u16("1 for the first delivery, higher when redelivered")
    accepted_at: int = u64("when HQ accepted it")
    log_entry: int = u64(
        "entry of HQ's log that records the acceptance; 0: accepted before version 0.6"
    )
    envelope: bytes = blob("the envelope as it was sent")


@record
class RouteQueue:
    """A queue at the end of a route, and its readers."""

    queue: str = text8("name of the queue")
    readers: list[str] = listing(text8, "client ids of its readers")


NEWEST = (1 << 64) - 1  # asks for a client's newest bundle alone


@record
class BundleQuery:
    """The bundles wanted of one client."""

    client_id: str = text8("whose")
    after: int = u64(
        "newest sequence number held, or 0; a page of later ones is returned; 2^64 - 1: the newest "
        "alone"
    )


@record
class BundleAnswer:
    """The bundles HQ has of one client, oldest first."""

    client_id: str = text8("whose")
    state: int = u8("0 known; 1 not found (or not visible to you); 2 revoked")
    revoked_at: int = u64("time of revocation, or 0")
    bundles: list[bytes] = listing(blob, "key bundles")
    more: bool = flag("1: later ones follow; ask again after the last of these")


@record
class PrekeyAnswer:
    """Prekeys of one client; each one-time part is given out only once."""

    client_id: str = text8("whose")
    signed: bytes = blob(
        "signed part; empty: HQ has none (or the client is revoked or not visible to you)"
    )
    once: bytes = blob("one-time part; empty: none left, or you asked for too many of this client")


@record
class Trace:
    """The state of one envelope in one queue."""

    queue: str = text8("name of the queue")
    client_id: str = text8("client that acknowledged it, or that it was delivered to, or empty")
    state: int = u8("0 waiting; 1 delivered; 2 acknowledged; 3 dead letter")
    attempts: int = u16("deliveries so far")
    delivered_at: int = u64("time of the last delivery, or 0")
    acknowledged_at: int = u64("time of the acknowledgement, or 0")
    reason: str = text16("of a dead letter, else empty")


# -- the opening -----------------------------------------------------------------------------------


@frame(0x04, "client", answer="WELCOME")
class Hello:
    """Opens the connection; must be its first frame."""

    magic: int = u32('0x43425831, "CBX1"')
    version_min: int = u8("lowest protocol version spoken")
    version_max: int = u8("highest")
    frame_bytes: int = u32("largest frame this client accepts")
    heartbeat_s: int = u16("the client sends a frame at least this often; 0: as HQ decides")
    software: str = text8("name and version, for the log")


@frame(0x05, "server")
class Welcome:
    """Accepts the connection; fixes its version and limits."""

    version: int = u8("protocol version of this connection")
    frame_bytes: int = u32("largest frame HQ accepts")
    envelope_bytes: int = u32("largest envelope HQ accepts")
    heartbeat_s: int = u16(
        "each side sends a frame at least this often; twice this without one ends the connection"
    )
    publish_window: int = u16("unconfirmed SENDs allowed")
    publish_window_bytes: int = u64("and their bytes")
    credit_envelopes: int = u32("largest credit of a consumer")
    credit_bytes: int = u64("and its bytes")
    connection_id: int = u64("for the logs of both sides")
    server_time: int = u64("HQ's clock")
    watermark: int = u64("envelope ids with an earlier time are refused as too old")
    client_id: str = text8(
        "client id HQ authenticated; empty: no certificate, the connection can only enrol"
    )
    role: str = text8("client, admin, or anonymous")
    software: str = text8("name and version")
    log_key: bytes = blob("HQ's log key and its certificate, see the log manual page", default=b"")
    history: bytes = blob(
        "incarnation id of the store; if it changed, HQ may have lost what it confirmed",
        default=b"",
    )
    features: int = u32("bit 0: HQ stores prekeys; if 0, clients do not ask for them", default=0)
    log_head: bytes = blob("newest head of HQ's log, a checkpoint signed now", default=b"")
    contacts: bytes = blob(
        "digest of this client's contact lists at HQ; empty: HQ has none", default=b""
    )


@frame(0x06, "both", answer="PONG")
class Ping:
    """Checks that the peer is alive."""

    correlation: int = u64("returned in PONG")
    news: str = text16(
        "from HQ: why it stopped reading from this publisher, or that it resumed; else empty",
        default="",
    )
    crl_number: int = u64("from HQ: number of a new revocation list to fetch; else 0", default=0)


@frame(0x07, "both")
class Pong:
    """The answer to PING."""

    correlation: int = u64("of the PING")


@frame(0x08, "both")
class Error:
    """Refuses a request; the code determines whether the connection ends."""

    correlation: int = u64("of the request; 0: the whole connection")
    code: int = u16("see the error table")
    retryable: bool = flag("1: the same request may be retried later")
    message: str = text16("explanation in plain words")
    detail: bytes = blob("code-specific; see the error table")


@frame(0x09, "server")
class GoingAway:
    """HQ is about to close this connection; reconnect after the pause."""

    pause_ms: int = u32("wait at least this long")
    message: str = text16("the reason")


@frame(0x0A, "server")
class Ok:
    """The request is done, and its effect durable."""

    correlation: int = u64("of the request")
    count: int = u64("number of affected objects, where that is defined")


# -- publishing ------------------------------------------------------------------------------------


@frame(0x02, "client", answer="CONFIRM")
class Send:
    """Publishes one envelope, which holds one or more messages."""

    correlation: int = u64("of this request")
    flags: int = u8(
        "bit 0 partial: list unreachable recipients in the confirm instead of refusing the envelope"
    )
    route_version: int = u64("from ROUTE; 0 if the recipients were named by id")
    envelope: bytes = rest("the envelope")


@frame(0x10, "server")
class Confirm:
    """The envelopes of these SENDs are on stable storage."""

    accepted_at: int = u64("HQ's time when it accepted them")
    log_position: int = u64("number of the entry in HQ's signed log")
    proof: bytes = blob("proof that the entry names these envelopes, see the log manual page")
    places: list[Place] = listing(Place, "where they are stored")
    ranges: list[ConfirmRange] = listing(ConfirmRange, "which SENDs")


@frame(0x11, "client", answer="ROUTE")
class Resolve:
    """Asks for the readers of what is published to a route."""

    correlation: int = u64("of this request")
    exchange: str = text8("name; empty: the default exchange")
    routing_key: str = text8("routing key")


@frame(0x12, "server")
class Route:
    """The answer to RESOLVE, and the detail of route-changed."""

    correlation: int = u64("of the RESOLVE")
    version: int = u64("version of HQ's bindings, to be returned in SEND")
    queues: list[RouteQueue] = listing(RouteQueue, "all matching queues")


# -- consuming -------------------------------------------------------------------------------------


@frame(0x20, "client", answer="OK")
class Consume:
    """Subscribes to a queue; HQ delivers within the credit."""

    correlation: int = u64("of this request")
    tag: int = u32("chosen by the client, unique on this connection, not 0")
    queue: str = text8("name")
    envelopes: int = u32("initial credit in envelopes")
    size: int = u64("initial credit in bytes; one envelope may exceed it")


@frame(0x21, "client", answer="OK")
class Cancel:
    """Ends a subscription; its unacknowledged envelopes return to the front of the queue."""

    correlation: int = u64("of this request")
    tag: int = u32("of CONSUME")


@frame(0x22, "client")
class Credit:
    """Adds credit to a consumer; not answered."""

    tag: int = u32("of CONSUME")
    envelopes: int = u32("envelopes to add")
    size: int = u64("bytes to add")


@frame(0x23, "server")
class Deliver:
    """Envelopes for a consumer, in the queue's order."""

    tag: int = u32("of CONSUME")
    entries: list[Delivered] = listing(Delivered, "one or more")


@frame(0x03, "client", answer="FETCHED")
class Fetch:
    """Takes what is waiting now, up to a limit; for clients that poll instead of subscribing."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    envelopes: int = u32("largest number of envelopes")
    size: int = u64("largest number of bytes; one envelope may exceed it")


@frame(0x24, "server")
class Fetched:
    """The answer to FETCH; envelopes not acknowledged when the connection ends are requeued."""

    correlation: int = u64("of the FETCH")
    waiting: int = u64("number of envelopes still waiting after these")
    entries: list[Delivered] = listing(Delivered, "none, one or more")


@frame(0x25, "client", answer="ACK_CONFIRMED")
class Ack:
    """The recipient has durably recorded the outcome of every message of these envelopes."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    ranges: list[Range] = listing(Range, "sequence numbers (`seq` of the deliveries)")


@frame(0x26, "server")
class AckConfirmed:
    """The acks are on stable storage."""

    correlation: int = u64("of the ACK")
    count: int = u64("number of envelopes acknowledged")
    unknown: int = u64("sequence numbers that were not outstanding (acknowledged before)")


@frame(0x27, "client", answer="OK")
class Nack:
    """This recipient cannot verify or open an envelope."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    seq: int = u64("of the delivery")
    requeue: bool = flag(
        "1: back to the front of the queue, its counter raised; 0: dead letter, with the reason"
    )
    outcome: int = u8("receipt outcome, see the receipt manual page")
    reason: str = text16("the reason in plain words")


@frame(0x28, "client", answer="OK")
class Resend:
    """Asks HQ to redeliver what this client has not acknowledged."""

    correlation: int = u64("of this request")
    queue: str = text8("name; empty: all queues this client reads")
    sender_id: str = text8("sender of the envelope; empty if envelope_id is zero")
    envelope_id: bytes = id16("of one envelope; zero: everything unacknowledged")


# -- keys ------------------------------------------------------------------------------------------


@frame(0x01, "client", answer="OK")
class Register:
    """Publishes this client's own key bundle."""

    correlation: int = u64("of this request")
    bundle: bytes = blob("the key bundle")


@frame(0x30, "client", answer="BUNDLES")
class GetBundles:
    """Asks for any number of key bundles."""

    correlation: int = u64("of this request")
    clients: list[BundleQuery] = listing(BundleQuery, "by client")
    hashes: list[bytes] = listing(blob, "by hash of the bundle, 32 bytes each")


@frame(0x31, "server")
class Bundles:
    """The answer to GET_BUNDLES: first the clients as asked, then the hashes as asked."""

    correlation: int = u64("of the request")
    answers: list[BundleAnswer] = listing(BundleAnswer, "one for each that was asked for")
    proofs: list[bytes] = listing(
        blob, "for each bundle in order: proof that HQ's log names it", later=True
    )


@frame(0x32, "client", answer="REVOCATIONS")
class GetRevocations:
    """Asks for the current revocation list."""

    correlation: int = u64("of this request")


@frame(0x33, "server")
class Revocations:
    """The answer to GET_REVOCATIONS: the revocation list (X.509 CRL) of the issuing CA."""

    correlation: int = u64("of the request")
    crl: bytes = blob("DER")


@frame(0x34, "client", answer="OK")
class OfferPrekeys:
    """Stores this client's prekeys at HQ, for peers that begin a session; OK has the number of
    one-time prekeys HQ has now.  Without any it only asks for that number.
    """

    correlation: int = u64("of this request")
    replace: bool = flag("1: HQ discards the one-time prekeys it has first")
    signed: bytes = blob("signed part; empty: unchanged")
    once: list[bytes] = listing(blob, "one-time parts")


@frame(0x35, "client", answer="PREKEYS")
class GetPrekeys:
    """Asks for prekeys of clients, to begin a session with each of them."""

    correlation: int = u64("of this request")
    clients: list[str] = listing(text8, "client ids")


@frame(0x36, "server")
class Prekeys:
    """The answer to GET_PREKEYS, one for each client in order."""

    correlation: int = u64("of the request")
    answers: list[PrekeyAnswer] = listing(PrekeyAnswer, "one for each client")


@frame(0x37, "client", answer="OK")
class TellContacts:
    """Replaces the contact lists HQ has of this client; two empty lists remove them.

    HQ refuses a publish that the recipient would refuse.  The recipient's inbox decides
    independently of HQ.
    """

    correlation: int = u64("of this request")
    allowed: list[str] = listing(text8, "client ids; if not empty, all others are refused")
    blocked: list[str] = listing(
        text8, "client ids to refuse; both lists together have at most 1,024"
    )


# -- topology --------------------------------------------------------------------------------------


@frame(0x40, "client", answer="OK")
class DeclareExchange:
    """Creates an exchange; succeeds if it exists with the same type."""

    correlation: int = u64("of this request")
    name: str = text8("1 to 127 bytes")
    type: int = u8("0 direct; 1 fanout; 2 topic")


@frame(0x41, "client", answer="OK")
class DeleteExchange:
    """Deletes an exchange and its bindings."""

    correlation: int = u64("of this request")
    name: str = text8("name")


@frame(0x42, "client", answer="OK")
class DeclareQueue:
    """Creates a queue; succeeds if it exists with the same properties."""

    correlation: int = u64("of this request")
    name: str = text8("1 to 127 bytes; `box.` is reserved")
    owner: str = text8("client id; empty: this client; only an admin may name another")
    readers: list[str] = listing(text8, "client ids of further readers")
    ttl_s: int = u32(
        "envelopes waiting longer become dead letters; 0: no limit; 2^32 - 1 or missing: unchanged",
        default=KEEP,
    )
    max_length: int = u32(
        "the oldest envelopes above it become dead letters; special values as for `ttl_s`",
        default=KEEP,
    )


@frame(0x43, "client", answer="OK")
class DeleteQueue:
    """Deletes an empty queue and its bindings; a queue with envelopes is refused."""

    correlation: int = u64("of this request")
    name: str = text8("name")


@frame(0x44, "client", answer="OK")
class Bind:
    """Binds a queue to a routing key of an exchange."""

    correlation: int = u64("of this request")
    exchange: str = text8("name")
    queue: str = text8("name")
    routing_key: str = text8("routing key; on a topic exchange a pattern with * and #")


@frame(0x45, "client", answer="OK")
class Unbind:
    """Removes a binding."""

    correlation: int = u64("of this request")
    exchange: str = text8("name")
    queue: str = text8("name")
    routing_key: str = text8("as bound")


@frame(0x46, "client", answer="OK")
class Purge:
    """Dead-letters everything waiting in a queue, recording who did it; admins only."""

    correlation: int = u64("of this request")
    queue: str = text8("name")


@frame(0x48, "client", answer="LISTING")
class List:
    """A page of exchanges, queues, bindings, clients, grants, connections, pending, metrics,
    alerts, certificates, totals or clock.
    """

    correlation: int = u64("of this request")
    what: str = text8("one of these words")
    name: str = text8("name of a single one; empty: all")
    after: str = text16("cursor of the previous page, or empty")


@frame(0x49, "server")
class Listing:
    """The answer to LIST."""

    correlation: int = u64("of the request")
    after: str = text16("cursor of the next page; empty: this is the last")
    rows: bytes = blob("JSON array of objects; the manual describes their keys")


@frame(0x4A, "client", answer="STATUS_REPORT")
class Status:
    """Asks where a message is; for its sender, its recipients and admins."""

    correlation: int = u64("of this request")
    sender_id: str = text8("sender of the message; empty: this client")
    message_id: bytes = id16("envelope id with the message's index")


@frame(0x4B, "server")
class StatusReport:
    """The answer to STATUS."""

    correlation: int = u64("of the request")
    found: bool = flag("0: HQ has no record of it that you may see")
    sender_id: str = text8("client id of its sender")
    accepted_at: int = u64("when HQ accepted it")
    traces: list[Trace] = listing(Trace, "one for each queue it was stored in")


# -- enrolment and administration ------------------------------------------------------------------


@frame(0x50, "anonymous", answer="ROOT")
class GetRoot:
    """Asks for HQ's root certificate, to compare its fingerprint with the token's."""

    correlation: int = u64("of this request")


@frame(0x51, "server")
class Root:
    """The answer to GET_ROOT: HQ's CA certificates."""

    correlation: int = u64("of the request")
    root: bytes = blob("of the root CA, DER")
    issuing: bytes = blob("of the issuing CA, DER")


@frame(0x52, "anonymous", answer="CERTIFICATE")
class RequestCertificate:
    """Enrols with a token's secret and a signing request; sent again, it asks for the outcome."""

    correlation: int = u64("of this request")
    client_id: str = text8("from the token")
    secret: bytes = blob("16 bytes, from the token")
    csr: bytes = blob("PKCS#10, DER; HQ uses only the key in it")


@frame(0x53, "server")
class Certificate:
    """The outcome of an enrolment or a renewal."""

    correlation: int = u64("of the request")
    state: int = u8(
        "0 issued; 1 waiting for an admin's approval; 2 waiting to be signed by an offline CA"
    )
    number: str = text8("short number that both ends display, for comparison")
    chain: list[bytes] = listing(blob, "DER, leaf first; empty while waiting")


@frame(0x54, "client", answer="CERTIFICATE")
class Renew:
    """Asks for a new certificate for this connection's client."""

    correlation: int = u64("of this request")
    csr: bytes = blob("PKCS#10, DER")


@frame(0x58, "admin", answer="TOKEN")
class Enrol:
    """Creates an enrolment token."""

    correlation: int = u64("of this request")
    client_id: str = text8("the client it is for")
    role: str = text8("client or admin")
    approve: bool = flag("1: hold the certificate until APPROVE")
    valid_s: int = u32("validity of the token; 0: one day")
    replaces: bool = flag("1: using the token replaces the home that has this id", default=False)


@frame(0x59, "server")
class Token:
    """The answer to ENROL; HQ never discloses the secret again."""

    correlation: int = u64("of the request")
    token: str = text16("one line; see the token manual page")


@frame(0x5A, "admin", answer="OK")
class Approve:
    """Approves or rejects a pending enrolment."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    accept: bool = flag("1 approve, 0 reject")


@frame(0x5B, "admin", answer="OK")
class Grant:
    """Grants or withdraws a right."""

    correlation: int = u64("of this request")
    client_id: str = text8("the client; * for all clients")
    right: str = text8("publish, bind, read, declare, or admin")
    resource: str = text8("exchange (publish, bind), queue (read), or empty (declare, admin)")
    give: bool = flag("1 grant, 0 withdraw")


@frame(0x5C, "admin", answer="OK")
class Revoke:
    """Revokes all certificates of a client and closes its connections."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    reason: str = text16("for the record")


@frame(0x5D, "admin", answer="REQUESTS")
class ExportRequests:
    """Asks for the signing requests that wait for an offline CA."""

    correlation: int = u64("of this request")


@frame(0x5E, "server")
class Requests:
    """The answer to EXPORT_REQUESTS."""

    correlation: int = u64("of the request")
    document: bytes = blob("JSON document, see the pki manual page")


@frame(0x5F, "admin", answer="OK")
class ImportCertificates:
    """Imports what an offline CA signed: certificates and its revocation list."""

    correlation: int = u64("of this request")
    document: bytes = blob("JSON document or PEM, see the pki manual page")


@frame(0x60, "admin", answer="LOG_ENTRIES")
class ReadLog:
    """Asks for a page of HQ's signed log."""

    correlation: int = u64("of this request")
    after: int = u64("number of the entry before the first one wanted; 0: from the oldest")
    count: int = u32("largest number of entries")
    old: bool = flag("1: of the log as it was before 0.6")


@frame(0x62, "client", answer="LISTING")
class ListDead:
    """Asks for a page of a queue's dead letters, newest last; for its readers and for admins."""

    correlation: int = u64("of this request")
    queue: str = text8("name; empty: all queues, for admins")
    after: str = text16("cursor of the previous page, or empty")
    settled: bool = flag("1: include those redriven or discarded")


@frame(0x63, "client", answer="OK")
class SettleDead:
    """Redrives dead letters (for the queue's owner and admins), or discards them (for admins)."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    ranges: list[Range] = listing(Range, "sequence numbers of the dead letters")
    drop: bool = flag(
        "0 redrive: back into the queue; 1 discard: their bytes are deleted permanently"
    )


@frame(0x64, "admin", answer="OK")
class Kick:
    """Closes a client's connections.  It may reconnect and loses nothing; REVOKE keeps it out."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    connection: int = u64("number of one connection (see LIST connections); 0: all of them")
    reason: str = text16("shown to the client")


@frame(0x65, "admin", answer="LISTING")
class Reload:
    """Reloads HQ's settings and certificates, all or nothing, and keeps all connections.  The rows
    list the changes.
    """

    correlation: int = u64("of this request")


@frame(0x66, "admin", answer="OK")
class Drain:
    """Refuses new publishes, delivers what is waiting to connected consumers, then stops HQ."""

    correlation: int = u64("of this request")
    begin: bool = flag("1 begin; 0 cancel: publishes are accepted again")
    most_s: int = u32("stop after this time even if envelopes are waiting; 0: five minutes")


@frame(0x68, "admin", answer="OK")
class ConfirmClock:
    """Says that HQ's clock is right; LIST clock shows it. HQ ends its doubt (page clocks)."""

    correlation: int = u64("of this request")


@frame(0x69, "admin", answer="OK")
class SetWatermark:
    """Sets the time before which HQ refuses envelope ids as too old, after a wrong clock has moved
    it.
    """

    correlation: int = u64("of this request")
    watermark: int = u64("ms since 1970, not in the future; 0: as [retention] metadata_days says")


@frame(0x67, "admin", answer="OK")
class LimitClient:
    """Sets a limit for one client that overrides the settings; LIST totals shows use and limits."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    what: str = text8("bytes, envelopes, queues, bundles, certificates or prekeys")
    most: int = u64("the limit; 2^64 - 1: as in the settings")


@frame(0x61, "server")
class LogEntries:
    """The answer to READ_LOG."""

    correlation: int = u64("of the request")
    last: int = u64("number of the log's newest entry")
    entries: list[LogEntry] = listing(LogEntry, "in order")
    edge: list[bytes] = listing(
        blob, "perfect subtrees of the tree before the first of these entries, largest first"
    )
    head: bytes = blob("the newest head, a checkpoint signed now")


@frame(0x6A, "client", answer="HEADS")
class GetHeads:
    """Asks for the newest head of HQ's log, and for proofs that it is consistent with heads this
    client has seen.
    """

    correlation: int = u64("of this request")
    sizes: list[int] = listing(u64, "tree sizes of those heads, ascending, at most 256")


@frame(0x6B, "server")
class Heads:
    """The answer to GET_HEADS."""

    correlation: int = u64("of the request")
    head: bytes = blob("the newest head, a checkpoint signed now")
    proofs: list[bytes] = listing(
        blob, "consistency proofs: of each size with the next, and of the last with the head"
    )
    cosigned: list[bytes] = listing(blob, "newest checkpoint cosigned by each witness")


@frame(0x6C, "client", answer="OK")
class Cosign:
    """Submits a checkpoint that this witness has cosigned."""

    correlation: int = u64("of this request")
    note: bytes = blob("checkpoint with HQ's signature and this witness's cosignature")


@frame(0x6D, "client", answer="PROVEN")
class Prove:
    """Asks for proofs of statements in HQ's log."""

    correlation: int = u64("of this request")
    envelopes: list[EnvelopeName] = listing(EnvelopeName, "prove their acceptance; at most 256")
    serials: list[str] = listing(
        text8, "serial numbers: prove the revocation of these certificates; at most 256"
    )
    incarnation: bool = flag("1: also prove how this incarnation of the store began")


@frame(0x6E, "server")
class Proven:
    """The answer to PROVE; where HQ has no proof, it is empty."""

    correlation: int = u64("of the request")
    envelopes: list[bytes] = listing(blob, "proofs, in the order asked")
    revocations: list[LogStatement] = listing(LogStatement, "in the order asked")
    statements: list[LogStatement] = listing(
        LogStatement, "groups of the kinds begun and restored, newest first"
    )


@frame(0x6F, "admin", answer="OK")
class AttestRestore:
    """Submits an admin's signed statement that HQ was restored from a backup, for the log."""

    correlation: int = u64("of this request")
    statement: bytes = blob("the statement, see the log manual page")
