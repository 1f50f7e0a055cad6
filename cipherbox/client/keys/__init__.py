"""This client's keys and certificate, and the keys of others that it trusts.

Map, written by `make generate`:

    changes      Describe what happened to a client's keys since they were pinned, for the person
                 who has to decide.
    comparing    Compare another client's keys with the number its owner reads out or shows, and pin
                 them.
    directory    Other parties' key bundles: pinned on this machine, or from HQ and verified.
    lifecycle    The life cycle of this client's keys: renewed before they expire, rotated with
                 overlap, destroyed when no longer needed.
    local_key    The file `local.key` of a home: 32 random bytes, in clear or encrypted under a
                 password.
    own          Add an encryption key of this client: publish it in the next bundle.
    pins         Pins: the key bundle of each other party that this machine trusts, since when, and
                 why.
    revocations  The CA's revocation list as this client knows it: signed, numbered, with an expiry.
    senders      Look up and verify the key bundles that received envelopes name.
    strength     Check how easily a new password is guessed with zxcvbn, which knows leaked
                 passwords, words, names, dates and keyboard patterns.
"""
