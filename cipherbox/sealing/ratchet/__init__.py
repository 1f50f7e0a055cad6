"""Sessions between two clients: a handshake with somebody who may be away, then a Double Ratchet.

No IO.

Map, written by `make generate`:

    double_ratchet  The Double Ratchet (Signal, "The Double Ratchet Algorithm", revision 4, without
                    header encryption).
    handshake       First contact with somebody who may be away (Signal, "The PQXDH Key Agreement
                    Protocol", revision 3).
    prekeys         Private prekeys, and the offers made of them.
    secure_session  Sessions without HQ: two programs, a few bytes to exchange, and a Double Ratchet
                    between them.
    session         A session between two clients: its handshake, its ratchet, what its messages
                    look like, its bytes at rest.
    settings        The numbers of a session.
"""
