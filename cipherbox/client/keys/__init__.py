"""This client's keys and certificate, and whose keys of others it believes.

Map, written by `make generate`:

    changes      What happened to a client's keys since they were pinned, in words for the person
                 who has to find out why.
    directory    Other parties' key bundles: from this machine's pins, or from HQ, and never
                 believed because HQ says so.
    lifecycle    The life of this client's keys: renewed before they end, rotated with overlap,
                 destroyed when nobody needs them.
    local_key    `local.key` of a home: 32 random bytes, as they are or sealed under a password.
    own          This client's own encryption keys: a new one goes into the next bundle, which HQ
                 gets.
    pins         Pins: which key bundle of each other party this machine believes, since when, and
                 on whose word.
    revocations  The CA's revocation list as this client knows it: signed, numbered, with an end.
    senders      Keys of senders: the bundles that envelopes name, looked up, believed, and
                 remembered.
    strength     How easily a new password is guessed, by zxcvbn: it knows leaked passwords, words,
                 names, dates and keyboards.
"""
