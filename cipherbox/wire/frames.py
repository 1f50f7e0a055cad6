"""The table of frames: every kind, who may send it, its fields in order.

Encoding, decoding, the manual page `protocol` and the golden files are all made from this table, so
a frame is added here and nowhere else.  A request carries a correlation id chosen by its sender,
rising by one per request; its answer carries the same.  Fields that a receiver does not know,
behind those it knows, are ignored: a frame may grow at its end within a version.  Times are
milliseconds since 1970 in UTC, 0 where there is none.
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
PREKEYS = 1  # a bit of WELCOME's features
KEEP = 0xFFFFFFFF  # of a queue's limit: as it is

# -- records: parts of frames ----------------------------------------------------------------------


@record
class Range:
    """A run of numbers: ``first``, ``first + 1``, … ``first + count - 1``."""

    first: int = u64("the first number")
    count: int = u32("how many, 1 or more")


@record
class ConfirmRange:
    """A run of correlation ids of SEND with one outcome."""

    first: int = u64("the first correlation id")
    count: int = u32("how many, 1 or more")
    outcome: int = u8("0 stored now; 1 was stored before (the same bytes)")
    place: int = u16("index into `places`")


@record
class LogEntry:
    """An entry of HQ's signed log."""

    record: bytes = blob("the leaf of the log's tree; of the log before 0.6: the head")
    body: bytes = blob("the groups")
    signature: bytes = blob("of the log before 0.6: of the head; else empty")


@record
class EnvelopeName:
    """What names an envelope anywhere."""

    sender_id: str = text8("who sent it")
    envelope_id: bytes = id16("its id")


@record
class LogStatement:
    """A group of HQ's log and the proof that the log holds it."""

    kind: int = u8("of the group; 0: there is none")
    payload: bytes = blob("of the group")
    proof: bytes = blob("inclusion proof in the log")


@record
class Place:
    """The queues one envelope went to, and the recipients a partial publish did not reach."""

    queues: list[str] = listing(text8, "queue names")
    missing: list[str] = listing(
        text8, "recipients without a queue, or who take nothing of this sender; if partial"
    )


@record
class Delivered:
    """One envelope handed to a consumer."""

    seq: int = u64("its number in the queue; what an ack names")
    attempt: int = u16("1 for the first delivery, then higher: redelivered")
    accepted_at: int = u64("when HQ accepted it")
    log_entry: int = u64(
        "the entry of HQ's log that says so; 0: it was accepted before version 0.6"
    )
    envelope: bytes = blob("the envelope, as it was sent")


@record
class RouteQueue:
    """A queue a route leads to, and who reads it."""

    queue: str = text8("name")
    readers: list[str] = listing(text8, "client ids")


NEWEST = (1 << 64) - 1  # of a client's bundles


@record
class BundleQuery:
    """Asks for the bundles of one client."""

    client_id: str = text8("whose")
    after: int = u64(
        "the sequence number held, or 0: a page of those after it is returned; 2^64 - 1: the "
        "newest alone"
    )


@record
class BundleAnswer:
    """What HQ holds of one client, oldest bundle first."""

    client_id: str = text8("whose")
    state: int = u8("0 known; 1 not found (or not yours to know); 2 revoked")
    revoked_at: int = u64("when, or 0")
    bundles: list[bytes] = listing(blob, "key bundles")
    more: bool = flag("whether later ones were left out: ask again, after the last of these")


@record
class PrekeyAnswer:
    """Prekeys of one client; a one-time part is handed out once."""

    client_id: str = text8("whose")
    signed: bytes = blob(
        "the signed part; empty: it left none (or is revoked, or not yours to know)"
    )
    once: bytes = blob("a one-time part; empty: none left, or you have had too many of this client")


@record
class Trace:
    """What HQ knows of one envelope in one queue."""

    queue: str = text8("name")
    client_id: str = text8("who acknowledged it, or to whom it was delivered, or empty")
    state: int = u8("0 waiting; 1 delivered; 2 acknowledged; 3 dead letter")
    attempts: int = u16("deliveries so far")
    delivered_at: int = u64("last delivery")
    acknowledged_at: int = u64("or 0")
    reason: str = text16("of a dead letter, else empty")


# -- the opening -----------------------------------------------------------------------------------


@frame(0x04, "client", answer="WELCOME")
class Hello:
    """Opens the connection; nothing may come before it."""

    magic: int = u32('0x43425831, "CBX1"')
    version_min: int = u8("lowest protocol version spoken")
    version_max: int = u8("highest")
    frame_bytes: int = u32("largest frame this client takes")
    heartbeat_s: int = u16("the client promises a frame at least this often; 0: HQ's wish")
    software: str = text8("name and version, for the log")


@frame(0x05, "server")
class Welcome:
    """Fixes version and limits."""

    version: int = u8("the version both will speak")
    frame_bytes: int = u32("largest frame HQ takes")
    envelope_bytes: int = u32("largest envelope HQ takes")
    heartbeat_s: int = u16(
        "either side sends something at least this often; silence of twice this ends the connection"
    )
    publish_window: int = u16("unconfirmed SENDs allowed")
    publish_window_bytes: int = u64("and their bytes")
    credit_envelopes: int = u32("largest credit of a consumer")
    credit_bytes: int = u64("and its bytes")
    connection_id: int = u64("for logs of both sides")
    server_time: int = u64("HQ's clock")
    watermark: int = u64("envelope ids of an earlier time are refused as too old")
    client_id: str = text8(
        "who HQ takes this connection for; empty: no certificate, only enrolment"
    )
    role: str = text8("client, admin, or anonymous")
    software: str = text8("name and version")
    log_key: bytes = blob(
        "HQ's log key and its certification, see the log manual page", default=b""
    )
    history: bytes = blob(
        "incarnation of the store; a new one: HQ may have lost what it confirmed", default=b""
    )
    features: int = u32("bit 0: HQ keeps prekeys; a client asks for them only then", default=0)
    log_head: bytes = blob("the newest head of HQ's log, a checkpoint signed now", default=b"")
    contacts: bytes = blob(
        "digest of the contacts HQ has of this client; empty: it has none", default=b""
    )


@frame(0x06, "both", answer="PONG")
class Ping:
    """Are you there?"""

    correlation: int = u64("returned in PONG")
    news: str = text16(
        "from HQ: why it reads nothing from a publisher now, or that it goes on; else empty",
        default="",
    )
    crl_number: int = u64(
        "from HQ: there is a revocation list of this number now, fetch it; else 0", default=0
    )


@frame(0x07, "both")
class Pong:
    """Yes."""

    correlation: int = u64("of the PING")


@frame(0x08, "both")
class Error:
    """A refusal; the code says whether the connection ends."""

    correlation: int = u64("of the request, or 0: the connection")
    code: int = u16("see the error table")
    retryable: bool = flag("the same request may be sent again later")
    message: str = text16("plain words")
    detail: bytes = blob("code-specific; see the error table")


@frame(0x09, "server")
class GoingAway:
    """HQ is about to close this connection; connect again after the pause."""

    pause_ms: int = u32("wait at least this long")
    message: str = text16("why")


@frame(0x0A, "server")
class Ok:
    """The request is done and durable."""

    correlation: int = u64("of the request")
    count: int = u64("how many things it touched, where that means something")


# -- publishing ------------------------------------------------------------------------------------


@frame(0x02, "client", answer="CONFIRM")
class Send:
    """Publishes one envelope of one or many messages."""

    correlation: int = u64("of this request")
    flags: int = u8(
        "bit 0 partial: recipients it cannot go to are listed in the confirm instead of refused"
    )
    route_version: int = u64("from ROUTE, or 0 when the recipients were named by id")
    envelope: bytes = rest("the envelope")


@frame(0x10, "server")
class Confirm:
    """The named SENDs are on stable storage."""

    accepted_at: int = u64("HQ's clock when they were accepted")
    log_position: int = u64("of the entry in HQ's signed log")
    proof: bytes = blob("that the log's entry names these envelopes, see the log manual page")
    places: list[Place] = listing(Place, "where they went")
    ranges: list[ConfirmRange] = listing(ConfirmRange, "which SENDs")


@frame(0x11, "client", answer="ROUTE")
class Resolve:
    """Who would read what is published here?"""

    correlation: int = u64("of this request")
    exchange: str = text8("name, or empty for the default exchange")
    routing_key: str = text8("key")


@frame(0x12, "server")
class Route:
    """The answer to RESOLVE, and the detail of route-changed."""

    correlation: int = u64("of the RESOLVE")
    version: int = u64("of HQ's bindings; goes into SEND")
    queues: list[RouteQueue] = listing(RouteQueue, "every matching queue")


# -- consuming -------------------------------------------------------------------------------------


@frame(0x20, "client", answer="OK")
class Consume:
    """Subscribes to a queue; HQ pushes within the credit."""

    correlation: int = u64("of this request")
    tag: int = u32("chosen by the client, unique on this connection, not 0")
    queue: str = text8("name")
    envelopes: int = u32("first credit, envelopes")
    size: int = u64("first credit, bytes; one envelope may pass it")


@frame(0x21, "client", answer="OK")
class Cancel:
    """Ends a subscription; what it holds unacknowledged returns to the queue's front."""

    correlation: int = u64("of this request")
    tag: int = u32("of CONSUME")


@frame(0x22, "client")
class Credit:
    """Adds credit to a consumer; not answered."""

    tag: int = u32("of CONSUME")
    envelopes: int = u32("to add")
    size: int = u64("bytes to add")


@frame(0x23, "server")
class Deliver:
    """Envelopes for a consumer, in the queue's order."""

    tag: int = u32("of CONSUME")
    entries: list[Delivered] = listing(Delivered, "one or many")


@frame(0x03, "client", answer="FETCHED")
class Fetch:
    """Takes what waits now, at most so much; for clients that ask instead of being pushed to."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    envelopes: int = u32("at most so many")
    size: int = u64("stop at so many bytes; one envelope may pass it")


@frame(0x24, "server")
class Fetched:
    """The answer to FETCH; the envelopes stay unacknowledged until acked, and return when the
    connection ends.
    """

    correlation: int = u64("of the FETCH")
    waiting: int = u64("envelopes still in the queue behind these")
    entries: list[Delivered] = listing(Delivered, "none, one or many")


@frame(0x25, "client", answer="ACK_CONFIRMED")
class Ack:
    """The outcome of every message of these envelopes is durably recorded by the recipient."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    ranges: list[Range] = listing(Range, "of seq")


@frame(0x26, "server")
class AckConfirmed:
    """The acks are on stable storage."""

    correlation: int = u64("of the ACK")
    count: int = u64("envelopes acknowledged by it")
    unknown: int = u64("numbers that were not waiting (acknowledged before)")


@frame(0x27, "client", answer="OK")
class Nack:
    """This envelope cannot be verified or opened here."""

    correlation: int = u64("of this request")
    queue: str = text8("name")
    seq: int = u64("of the delivery")
    requeue: bool = flag(
        "1: back to the front, counter raised; 0: to the dead letters, with the reason"
    )
    outcome: int = u8("of the receipt outcomes")
    reason: str = text16("plain words")


@frame(0x28, "client", answer="OK")
class Resend:
    """Deliver again what this client holds unacknowledged."""

    correlation: int = u64("of this request")
    queue: str = text8("name; empty: every queue this client reads")
    sender_id: str = text8("with envelope_id: that envelope's sender; else empty")
    envelope_id: bytes = id16("or zeros: everything unacknowledged")


# -- keys ------------------------------------------------------------------------------------------


@frame(0x01, "client", answer="OK")
class Register:
    """Publishes this client's own key bundle."""

    correlation: int = u64("of this request")
    bundle: bytes = blob("the key bundle")


@frame(0x30, "client", answer="BUNDLES")
class GetBundles:
    """Asks for key bundles, many at once."""

    correlation: int = u64("of this request")
    clients: list[BundleQuery] = listing(BundleQuery, "by client")
    hashes: list[bytes] = listing(blob, "by bundle hash, 32 bytes each")


@frame(0x31, "server")
class Bundles:
    """The answer to GET_BUNDLES: first the clients as asked, then the hashes as asked."""

    correlation: int = u64("of the request")
    answers: list[BundleAnswer] = listing(BundleAnswer, "one for each asked")
    proofs: list[bytes] = listing(
        blob, "for each bundle in order: the proof that HQ's log names it", later=True
    )


@frame(0x32, "client", answer="REVOCATIONS")
class GetRevocations:
    """Asks for the current revocation list."""

    correlation: int = u64("of this request")


@frame(0x33, "server")
class Revocations:
    """The revocation list (X.509 CRL) of the issuing CA."""

    correlation: int = u64("of the request")
    crl: bytes = blob("DER")


@frame(0x34, "client", answer="OK")
class OfferPrekeys:
    """Leaves prekeys at HQ for those who begin a session; OK counts the one-time ones left.
    With neither it asks.
    """

    correlation: int = u64("of this request")
    replace: bool = flag("1: the one-time prekeys HQ has are dropped first")
    signed: bytes = blob("the signed part, or empty: as it is")
    once: list[bytes] = listing(blob, "one-time parts")


@frame(0x35, "client", answer="PREKEYS")
class GetPrekeys:
    """Asks for prekeys of clients, to begin a session with each."""

    correlation: int = u64("of this request")
    clients: list[str] = listing(text8, "client ids")


@frame(0x36, "server")
class Prekeys:
    """The answer to GET_PREKEYS: one for each client, as asked."""

    correlation: int = u64("of the request")
    answers: list[PrekeyAnswer] = listing(PrekeyAnswer, "one for each asked")


@frame(0x37, "client", answer="OK")
class TellContacts:
    """Whom this client takes mail from, in place of what it told before; with two empty lists HQ
    keeps nothing of it.

    HQ refuses a publish that the recipient would refuse.  The recipient's inbox decides, whatever
    HQ does.
    """

    correlation: int = u64("of this request")
    allowed: list[str] = listing(text8, "client ids: as soon as there is one, nobody else is taken")
    blocked: list[str] = listing(
        text8, "client ids that are refused; both lists together have at most 1,024"
    )


# -- topology --------------------------------------------------------------------------------------


@frame(0x40, "client", answer="OK")
class DeclareExchange:
    """Makes an exchange, or finds it the same."""

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
    """Makes a queue, or finds it the same."""

    correlation: int = u64("of this request")
    name: str = text8("1 to 127 bytes; `box.` is reserved")
    owner: str = text8("empty: the declarer; only an admin names another")
    readers: list[str] = listing(text8, "who else reads it")
    ttl_s: int = u32(
        "what waits longer becomes a dead letter; 0: none; 2^32 - 1 or missing: as it is",
        default=KEEP,
    )
    max_length: int = u32(
        "the oldest above it become dead letters; 0, 2^32 - 1 and missing as before", default=KEEP
    )


@frame(0x43, "client", answer="OK")
class DeleteQueue:
    """Deletes an empty queue and its bindings; a queue with envelopes is refused."""

    correlation: int = u64("of this request")
    name: str = text8("name")


@frame(0x44, "client", answer="OK")
class Bind:
    """Leads a routing key of an exchange into a queue."""

    correlation: int = u64("of this request")
    exchange: str = text8("name")
    queue: str = text8("name")
    routing_key: str = text8("key, or pattern with * and # on a topic exchange")


@frame(0x45, "client", answer="OK")
class Unbind:
    """Ends a binding."""

    correlation: int = u64("of this request")
    exchange: str = text8("name")
    queue: str = text8("name")
    routing_key: str = text8("as bound")


@frame(0x46, "client", answer="OK")
class Purge:
    """Moves everything waiting in a queue to the dead letters, with who did it; admin only."""

    correlation: int = u64("of this request")
    queue: str = text8("name")


@frame(0x48, "client", answer="LISTING")
class List:
    """A page of exchanges, queues, bindings, clients, grants, connections, pending, metrics,
    alerts or certificates.
    """

    correlation: int = u64("of this request")
    what: str = text8("one of those words")
    name: str = text8("only this one (show), or empty for all")
    after: str = text16("the cursor of the page before, or empty")


@frame(0x49, "server")
class Listing:
    """The answer to LIST."""

    correlation: int = u64("of the request")
    after: str = text16("cursor of the next page; empty: this was the last")
    rows: bytes = blob("a JSON array of objects; their keys are in the manual")


@frame(0x4A, "client", answer="STATUS_REPORT")
class Status:
    """Where is my message?  Answered to its sender, its recipients and admins."""

    correlation: int = u64("of this request")
    sender_id: str = text8("of the message; empty: this client")
    message_id: bytes = id16("envelope id plus the message's index")


@frame(0x4B, "server")
class StatusReport:
    """The answer to STATUS."""

    correlation: int = u64("of the request")
    found: bool = flag("0: HQ has no record of it for you")
    sender_id: str = text8("who sent it")
    accepted_at: int = u64("when HQ accepted it")
    traces: list[Trace] = listing(Trace, "one for each queue it went to")


# -- enrolment and administration ------------------------------------------------------------------


@frame(0x50, "anonymous", answer="ROOT")
class GetRoot:
    """Asks for HQ's root certificate, to compare its fingerprint with the token's."""

    correlation: int = u64("of this request")


@frame(0x51, "server")
class Root:
    """HQ's certificates."""

    correlation: int = u64("of the request")
    root: bytes = blob("root CA, DER")
    issuing: bytes = blob("issuing CA, DER")


@frame(0x52, "anonymous", answer="CERTIFICATE")
class RequestCertificate:
    """Enrols: the token's secret and a signing request; sent again, it asks for the outcome."""

    correlation: int = u64("of this request")
    client_id: str = text8("from the token")
    secret: bytes = blob("16 bytes, from the token")
    csr: bytes = blob("PKCS#10, DER; HQ takes only the key from it")


@frame(0x53, "server")
class Certificate:
    """The outcome of an enrolment or a renewal."""

    correlation: int = u64("of the request")
    state: int = u8(
        "0 issued; 1 waits for the admin's approval; 2 waits for the CA to be carried there and "
        "back"
    )
    number: str = text8("the short number both ends show")
    chain: list[bytes] = listing(blob, "DER, leaf first; empty while waiting")


@frame(0x54, "client", answer="CERTIFICATE")
class Renew:
    """A new certificate for this connection's client."""

    correlation: int = u64("of this request")
    csr: bytes = blob("PKCS#10, DER")


@frame(0x58, "admin", answer="TOKEN")
class Enrol:
    """Makes an enrolment token."""

    correlation: int = u64("of this request")
    client_id: str = text8("for whom")
    role: str = text8("client or admin")
    approve: bool = flag("hold the certificate until APPROVE")
    valid_s: int = u32("how long the token lives; 0: a day")
    replaces: bool = flag("the home that has this id ends when the token is used", default=False)


@frame(0x59, "server")
class Token:
    """The answer to ENROL; the only time HQ says the secret."""

    correlation: int = u64("of the request")
    token: str = text16("one line; see the token format")


@frame(0x5A, "admin", answer="OK")
class Approve:
    """Lets a held enrolment go, or refuses it."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    accept: bool = flag("1 yes, 0 no")


@frame(0x5B, "admin", answer="OK")
class Grant:
    """Gives or takes a right."""

    correlation: int = u64("of this request")
    client_id: str = text8("who; * for every client")
    right: str = text8("publish, bind, read, declare, or admin")
    resource: str = text8("exchange (publish, bind), queue (read), or empty (declare, admin)")
    give: bool = flag("1 give, 0 take")


@frame(0x5C, "admin", answer="OK")
class Revoke:
    """Revokes every certificate of a client and cuts its connections."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    reason: str = text16("for the record")


@frame(0x5D, "admin", answer="REQUESTS")
class ExportRequests:
    """The signing requests that wait for a CA that is elsewhere."""

    correlation: int = u64("of this request")


@frame(0x5E, "server")
class Requests:
    """The answer to EXPORT_REQUESTS."""

    correlation: int = u64("of the request")
    document: bytes = blob("a JSON document; see the pki manual page")


@frame(0x5F, "admin", answer="OK")
class ImportCertificates:
    """What a CA that is elsewhere signed: certificates and its revocation list."""

    correlation: int = u64("of this request")
    document: bytes = blob("a JSON document, or PEM; see the pki manual page")


@frame(0x60, "admin", answer="LOG_ENTRIES")
class ReadLog:
    """A page of HQ's signed log."""

    correlation: int = u64("of this request")
    after: int = u64("the entry before the first wanted; 0: from the oldest there is")
    count: int = u32("at most so many entries")
    old: bool = flag("1 of the log as it was before 0.6")


@frame(0x62, "client", answer="LISTING")
class ListDead:
    """A page of a queue's dead letters, newest last; for its readers, and for admins of all
    queues.
    """

    correlation: int = u64("of this request")
    queue: str = text8("whose; empty: of all queues, for admins")
    after: str = text16("the cursor of the page before, or empty")
    settled: bool = flag("1 also those redriven or dropped")


@frame(0x63, "client", answer="OK")
class SettleDead:
    """Puts dead letters back into their queue (its owner, an admin), or drops them (an admin)."""

    correlation: int = u64("of this request")
    queue: str = text8("whose")
    ranges: list[Range] = listing(Range, "which")
    drop: bool = flag("0 back into the queue, 1 drop: their bytes are deleted for good")


@frame(0x64, "admin", answer="OK")
class Kick:
    """Cuts a client's connections; it may come back, and loses nothing.  To keep it out: REVOKE."""

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    connection: int = u64("only this one (LIST connections has the numbers); 0: all of them")
    reason: str = text16("what the client is told")


@frame(0x65, "admin", answer="LISTING")
class Reload:
    """Reads HQ's settings and certificates again, all or nothing; no connection is dropped.
    Rows: what changed.
    """

    correlation: int = u64("of this request")


@frame(0x66, "admin", answer="OK")
class Drain:
    """No new publishes; what waits goes out to the consumers that are there; then HQ ends."""

    correlation: int = u64("of this request")
    begin: bool = flag("1 begin, 0 take it back: publishes are taken again")
    most_s: int = u32("end after so many seconds, whatever waits still; 0: five minutes")


@frame(0x67, "admin", answer="OK")
class LimitClient:
    """How much one client may have, whatever the settings say; LIST totals shows what each has
    and may have.
    """

    correlation: int = u64("of this request")
    client_id: str = text8("whose")
    what: str = text8("bytes, envelopes, queues, bundles, certificates or prekeys")
    most: int = u64("at most so much; 2^64 - 1: as the settings say")


@frame(0x61, "server")
class LogEntries:
    """The answer to READ_LOG."""

    correlation: int = u64("of the request")
    last: int = u64("the newest entry of the log")
    entries: list[LogEntry] = listing(LogEntry, "in order")
    edge: list[bytes] = listing(
        blob, "the perfect subtrees of the tree before the first of these, largest first"
    )
    head: bytes = blob("the newest head, a checkpoint signed now")


@frame(0x6A, "client", answer="HEADS")
class GetHeads:
    """Asks for the newest head of HQ's log, and for proofs that it goes on from heads this
    client has met.
    """

    correlation: int = u64("of this request")
    sizes: list[int] = listing(u64, "of those heads, rising, at most 256")


@frame(0x6B, "server")
class Heads:
    """The answer to GET_HEADS."""

    correlation: int = u64("of the request")
    head: bytes = blob("the newest head, a checkpoint signed now")
    proofs: list[bytes] = listing(
        blob, "consistency of each size with the next, and of the last with the head"
    )
    cosigned: list[bytes] = listing(blob, "the newest checkpoint each witness has cosigned")


@frame(0x6C, "client", answer="OK")
class Cosign:
    """A witness hands over a checkpoint that it has cosigned."""

    correlation: int = u64("of this request")
    note: bytes = blob("the checkpoint with HQ's signature and this witness's cosignature")


@frame(0x6D, "client", answer="PROVEN")
class Prove:
    """Asks for proofs of what HQ's log says."""

    correlation: int = u64("of this request")
    envelopes: list[EnvelopeName] = listing(EnvelopeName, "where each was accepted; at most 256")
    serials: list[str] = listing(
        text8, "where the certificate of that serial number was revoked; at most 256"
    )
    incarnation: bool = flag(
        "1: also what the log says about how this incarnation of the store began"
    )


@frame(0x6E, "server")
class Proven:
    """The answer to PROVE; an empty proof: HQ has none."""

    correlation: int = u64("of the request")
    envelopes: list[bytes] = listing(blob, "proofs, as asked")
    revocations: list[LogStatement] = listing(LogStatement, "as asked")
    statements: list[LogStatement] = listing(
        LogStatement, "of the kinds begun and restored, newest first"
    )


@frame(0x6F, "admin", answer="OK")
class AttestRestore:
    """An admin's signed word that HQ was restored from a backup, for the log."""

    correlation: int = u64("of this request")
    statement: bytes = blob("see the log manual page")
