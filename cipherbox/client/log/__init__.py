"""The transparency log, seen by a client: heads it has verified, proofs, contradictions,
cosignatures.

Map, written by `make generate`:

    audit          Reads HQ's whole log and checks it: every entry, the tree over them, and that
                   what was read before is met again.
    bundle_proofs  HQ's proofs that its signed log names the key bundles it delivers.
    heads          What a home remembers of HQ's log, durably, and for all its programs: the newest
                   head it verified, incarnations that ended with an admin's word, the contradiction
                   that stopped it, what `audit verify` read, what it cosigned as a witness.
    order          Whether an envelope was accepted before its sender was revoked, by the order of
                   HQ's log and not by HQ's clock.
    ports          Who can ask HQ about its log, and what a connection shows of it.
    quorum         Witnesses whose cosignatures this client demands: `[log] witnesses` and `quorum`
                   in client.toml.
    restores       An admin's signed word that HQ was restored from a backup: what tells an honest
                   restore from a rollback.
    verifier       Checks HQ's signed log from a client's side: `LogProofVerifier`.
    witness        A witness: cosigns heads of HQ's log, as C2SP's tlog-cosignature says, after it
                   has verified them.
"""
