"""A client's view of the transparency log: verified heads, proofs, contradictions, cosignatures.

Map, written by `make generate`:

    audit          Read HQ's whole log and verify every entry, the tree over them, and consistency
                   with earlier reads.
    bundle_proofs  HQ's proofs that its signed log names the key bundles it delivers.
    cosigners      Show the state of HQ's log: its newest verified head, and how far each witness
                   has cosigned it.
    heads          What a home records of HQ's log, durably and for all its programs.
    order          Verify that an envelope was accepted before its sender was revoked, by the order
                   of HQ's log rather than by HQ's clock.
    ports          Protocols of the log's verification: requests to HQ, and what a connection and a
                   delivery show.
    quorum         Witnesses whose cosignatures this client requires: `[log] witnesses` and `quorum`
                   in client.toml.
    restores       Signed statements by admins that HQ was restored from a backup, which distinguish
                   a restore from a rollback.
    verifier       Verify HQ's signed log on the client's side: `LogProofVerifier`.
    witness        A witness: verify heads of HQ's log and cosign them as C2SP's tlog-cosignature
                   specifies.
"""
