"""`ca`: HQ's certificates and keys.

Map, written by `make generate`:

    command  `ca`: what HQ's certificates are, and what is carried to a CA that is elsewhere, and
             back.
    keys     `ca take-off`, `ca bring-back`, `ca renew`: the CA's private keys, on HQ's machine and
             off it.
"""
