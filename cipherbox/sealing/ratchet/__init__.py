"""Sessions between two clients: a handshake with somebody who may be away, then a Double Ratchet.
No IO.

settings.py    every number of a session, each with its reason
handshake.py   PQXDH: X25519 and ML-KEM-768, from which both ends get the first root key
ratchet.py     the Double Ratchet: chains of keys, one for each message
session.py     a session: handshake and ratchet put together, its stanza, its bytes at rest
prekeys.py     private prekeys and the offers made of them
"""
