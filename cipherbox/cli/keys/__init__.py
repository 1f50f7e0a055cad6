"""`keys`: keys of this machine and of others.

Map, written by `make generate`:

    command   `keys`: what this machine believes of other parties' keys, and how a person makes sure
              of it.
    life      `keys rotate` and `keys renew`, and the word a short command says when a certificate
              is due.
    password  `keys password`: set, change or remove the password of a client's keys.
    rsa       `keys generate --rsa`, and the PEM files of `keys import` and `keys export`.
    taking    `keys import`: another's key bundle that came in person, or an RSA private key of
              one's own.
    verify    `keys verify`: two people compare a number by a way HQ has no part in.
"""
