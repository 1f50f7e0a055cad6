"""`ca`: HQ's certificates and keys.

Map, written by `make generate`:

    command  `ca`: HQ's certificates, and the exchange of requests and responses with an offline CA.
    keys     `ca take-off`, `ca bring-back`, `ca renew`: the CA's private keys, on HQ's machine and
             off it.
"""
