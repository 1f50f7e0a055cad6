"""`keys`: keys of this machine and of others.

Map, written by `make generate`:

    command   `keys`: pinned keys of other clients and how to compare them, and this client's own
              keys.
    life      `keys rotate` and `keys renew`: new keys, and a new certificate.
    password  `keys password`: set, change or remove the password of a client's keys.
    rsa       `keys generate --rsa`, and the PEM files of `keys import` and `keys export`.
    taking    `keys import`: another client's key bundle received in person, or one's own RSA
              private key.
    verify    `keys verify`: two people compare a number over a channel that HQ has no part in.
"""
