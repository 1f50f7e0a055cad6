"""Frames from clients, answered: commands for the broker, and what HQ answers without it.

Map, written by `make generate`:

    administration  Administration of a running HQ, other than its topology: metrics, alerts,
                    connections, reload, drain.
    answers         Encode the broker's answers as frames.
    dispatch        Dispatch requests: to the broker as commands, or to the parts of HQ that answer
                    them.
    inventory       The rows of LIST certificates (`cipherbox ca`), which the manual page `pki`
                    describes.
    log             Requests to HQ's signed log: heads, proofs, cosignatures, and for admins its
                    entries.
    services        The interfaces that requests use: of HQ, and of the connection they arrived on.
"""
