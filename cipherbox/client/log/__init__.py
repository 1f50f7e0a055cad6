"""The transparency log, seen by a client: heads it has verified, proofs, contradictions,
cosignatures.
"""
