"""Public formats: reading them needs no secret.

Map, written by `make generate`:

    bundle            Key bundles: a client's public keys, signed by its certificate's key and by
                      its own signing keys.
    chained_log       The signed log of version 0.5.0: a chain of signed heads.
    checkpoint        Checkpoints: the signed heads of HQ's log, by C2SP's specifications
                      signed-note, tlog-checkpoint and tlog-cosignature, so that any program that
                      implements those can read, verify and cosign them.
    evidence          Evidence files: two heads that HQ signed and that contradict each other.
    group             Receipt groups: one signed receipt with all its leaves, of which those about
                      other senders' envelopes are hashes only.
    ids               Envelope ids: UUIDv7 (RFC 9562, section 5.7), low 16 bits zero; a message's id
                      is its envelope's plus its index.
    labels            Labels: domain separation between the uses of keys, hashes and signatures.
    layout            The offsets of an envelope's parts, and the hashes over them, computed in one
                      pass.
    merkle_tree       The Merkle tree of RFC 9162, section 2.1: hashes, proofs of inclusion and of
                      consistency, and an append in O(log n).
    outcomes          The table of outcomes that a recipient reports for an envelope or a message.
    prefix            The prefix: the part of an envelope that HQ reads, all of it in clear.
    prekeys           Prekeys: public keys that a client stores at HQ, so that others can start a
                      session with it while it is offline.
    receipt           Receipts: the recipient's signed statement of what became of envelopes.
    receipt_file      Receipt files: a receipt that third parties can verify offline, years later.
    rsa               RSA public keys in bundles: which ones are accepted, and their only encoding
                      there, SubjectPublicKeyInfo in DER.
    signature         Verify signatures made with a bundle's signing keys.
    stanza_types      The table of stanza types: how a recipient's copy of the content key may be
                      wrapped.
    suites            Tables of body ciphers, signature suites and signing keys: numbers on the
                      wire, names and sizes.
    transparency_log  HQ's transparency log: everything one commit accepted, delivered,
                      dead-lettered and changed, as one leaf of an append-only tree.
"""
