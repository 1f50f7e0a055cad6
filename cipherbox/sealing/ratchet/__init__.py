"""Sessions between two clients: an asynchronous handshake (PQXDH), then a Double Ratchet.

No IO.

Map, written by `make generate`:

    double_ratchet  The Double Ratchet (Signal, "The Double Ratchet Algorithm", revision 4, without
                    header encryption).
    handshake       The handshake that starts a session with a peer that may be offline (Signal,
                    "The PQXDH Key Agreement Protocol", revision 3).
    prekeys         Private prekeys, and the signed offers made from them.
    secure_session  Sessions without HQ: two programs exchange a few bytes, then use a Double
                    Ratchet.
    session         A session between two clients: its handshake, its ratchet, and the bytes of its
                    messages and of its state at rest.
    settings        Settings of a session.
"""
