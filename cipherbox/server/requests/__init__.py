"""Frames from clients, answered: commands for the broker, and what HQ answers without it.

Map, written by `make generate`:

    administration  What an admin asks of a running HQ beside its topology: figures, alerts,
                    connections, reload, drain.
    answers         What the core answered -> the bytes of frames.
    dispatch        Frames -> commands for the core, and the requests HQ answers without it.
    inventory       Everything HQ knows of its certificates, for LIST certificates (`cipherbox ca`);
                    the page `pki` has the rows.
    log             What clients ask of HQ's signed log: heads, proofs, cosignatures, and for admins
                    the entries themselves.
    services        What requests use of HQ and of the connection that they came on.
"""
