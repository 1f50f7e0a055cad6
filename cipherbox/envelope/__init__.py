"""The bytes both ends may know: no secret is needed to read any of them.

Map, written by `make generate`:

    bundle            Key bundles: a client's public keys, signed by its certificate's key and by
                      its own signing keys.
    chained_log       The signed log as version 0.5.0 kept it: a chain of signed heads.
    checkpoint        Checkpoints: the signed heads of HQ's log, as C2SP's specifications
                      signed-note, tlog-checkpoint and tlog-cosignature lay them down, so that any
                      program that knows those can read, verify and cosign them.
    evidence          A contradiction of HQ's log as a file: two heads that HQ signed and that do
                      not go together.
    group             A group: one signed receipt and all its leaves, those about other senders'
                      envelopes as hashes only.
    ids               Envelope ids: UUIDv7 (RFC 9562, section 5.7), low 16 bits zero; a message's id
                      is its envelope's plus its index.
    labels            Labels: what keeps one use of a key, a hash or a signature from every other.
    layout            Where the parts of an envelope lie, and the one hash that runs over them.
    merkle_tree       The Merkle tree of RFC 9162, section 2.1: hashes, proofs of inclusion and of
                      consistency, and an append in O(log n).
    outcomes          The table of outcomes: what a recipient says of an envelope or a message.
    prefix            The prefix: everything HQ reads of an envelope, and all of it in clear.
    prekeys           Prekeys: the public keys a client leaves at HQ, so that others can begin a
                      session with it while it is away.
    receipt           Receipts: the recipient's signed word on what became of envelopes.
    receipt_file      A receipt as a file that anybody can verify, years later, with no network and
                      no part in the exchange.
    rsa               RSA public keys in bundles: which are taken, and the one form they have there,
                      SubjectPublicKeyInfo in DER.
    signature         Checks of signatures made with a bundle's signing keys.
    stanza_types      The table of stanza types: how a recipient's copy of the content key may be
                      wrapped.
    suites            Tables of body ciphers, signature suites and signing keys: numbers on the
                      wire, names and sizes.
    transparency_log  HQ's signed log: what one commit accepted, delivered, gave up and changed, as
                      one leaf of an append-only tree.
"""
