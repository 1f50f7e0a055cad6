"""HQ's certification authority: on this machine, offline, or an organization's.

Map, written by `make generate`:

    authority          The CA's private keys on HQ's machine: take them off, bring them back, renew
                       the issuing CA.
    credentials        HQ's certificates and private keys, in files.
    exchange           Exchange with an offline CA: requests of clients, of HQ and of the issuing
                       CA, and its answers.
    offline            The directory of an offline CA: on a USB stick, or on a machine of its own.
    organization       HQ under an organization's own CA: `init` writes requests, the organization
                       signs them with its own tools, `ca import --hq` completes the set-up.
    own_certificate    HQ's own certificate: renewed automatically after two thirds of its life,
                       without dropping connections.
    requests_document  Requests for an offline CA, as rows of the store and as the document for the
                       CA.
    signed_responses   Answers of an offline CA: our offline CA's document, or plain PEM from other
                       tools.
"""
