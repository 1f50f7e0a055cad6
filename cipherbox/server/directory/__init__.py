"""Who is who: certificates, enrolments, key bundles, prekeys, revocation lists.

Map, written by `make generate`:

    bundles              Key bundles at HQ: taken from their owners, kept encrypted, handed out
                         complete.
    certificate_records  The record of certificates, in the store and in memory: issued, revoked,
                         withdrawn.
    enrolment            Tokens and certificates for new clients, and renewals.
    prekeys              Prekeys at HQ: taken from their owners if the owner's own keys signed them,
                         each one-time part handed out once.
    revocation_enforcer  Do what the revocation lists say: end certificates, connections and
                         clients, and HQ's own.
    revocation_lists     Revocation lists that come as files: of an organization's CAs, or of an
                         issuing CA whose key is elsewhere.
    trust                Certificates at HQ: who a connection is, what is revoked, and the issuing
                         CA while its key is here.
"""
