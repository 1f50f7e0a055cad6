"""Who is who: certificates, enrolments, key bundles, prekeys, revocation lists.

Map, written by `make generate`:

    bundles              Key bundles at HQ: registered by their owners, stored encrypted, served
                         with proofs.
    certificate_records  The record of certificates, in the store and in memory: issued, revoked,
                         withdrawn.
    enrolment            Tokens and certificates for new clients, and renewals.
    prekeys              Prekeys at HQ: accepted if signed by their owner's keys; each one-time part
                         is given out once.
    revocation_enforcer  Apply revocation lists: revoke certificates and clients, close connections,
                         replace HQ's own.
    revocation_lists     Revocation lists in files: of an organization's CAs, or of an issuing CA
                         whose key is elsewhere.
    trust                Certificates at HQ: identify connections, know what is revoked, and issue
                         while the CA is here.
"""
