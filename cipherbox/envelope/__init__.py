"""The bytes both ends may know; no secret is needed to read any of it.

ids.py         envelope ids and message ids
kinds.py       numbers of stanza types, ciphers, suites, outcomes; their sizes
prefix.py      the prefix: what HQ routes by
layout.py      where the parts of an envelope lie, and its hashes
signature.py   checks of signatures by a bundle's keys
bundle.py      key bundles: bytes, certification, succession, fingerprint
rsa.py         RSA public keys: which are taken, and their bytes
prekeys.py     what a client leaves at HQ for sessions: bytes, verification
receipt.py     receipts: bytes, Merkle tree, verification
"""
