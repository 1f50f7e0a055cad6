"""HQ's certification authority: on this machine, offline, or an organization's.

Map, written by `make generate`:

    authority          The CA's private keys on HQ's machine: taken off, brought back, used to renew
                       the issuing CA.
    credentials        HQ's certificates and private keys, as its files hold them.
    exchange           Requests for a CA that is elsewhere, and what comes back: of clients, of HQ
                       itself, of the issuing CA.
    offline            The directory of a CA that is not at HQ: on a USB stick, or on a machine of
                       its own.
    organization       HQ under an organization's own CA: `init` asks, the organization signs with
                       its own tools, `ca import --hq` finishes.
    own_certificate    HQ's own certificate: renewed by itself when two thirds of its life are over,
                       and no connection notices.
    requests_document  Requests that wait for a CA that is elsewhere, as rows of the store and as
                       the document that is carried there.
    signed_responses   What comes back from a CA that is elsewhere: our offline CA's document, or
                       plain PEM that other tools made.
"""
