"""Certificates: create, read, and verify them against one profile; revocation lists.

Callers write ``from cipherbox import pki`` and use the names exported here.

Map, written by `make generate`:

    certificates      Certificates: a root, an issuing CA, one certificate per party, and the
                      revocation list.
    key_replacement   Replace the key of a certificate in three steps, each durable before the next
                      begins.
    profile           The certificate profile, and the only verifier of chains: of TLS peers, key
                      bundles, and what a CA signed.
    revocation_lists  Revocation lists (X.509 CRLs, RFC 5280): made by our issuing CA or an
                      organization's CA, and checked.
"""

from cipherbox.pki.certificates import (
    CRL_DAYS,
    OFFLINE_CRL_DAYS,
    Authority,
    PrivateKey,
    PublicKey,
    common_name,
    csr_pem,
    der,
    end_of,
    enrol_number,
    fingerprint,
    is_due,
    issue_client,
    issue_server,
    key_of_csr,
    key_pem,
    load_key,
    load_pem,
    make_ca_csr,
    make_csr,
    ms,
    new_issuing,
    new_key,
    new_root,
    password_of,
    pem,
    renew_at,
    renew_issuing,
    serial,
    spki,
    spki_of,
)
from cipherbox.pki.profile import (
    CLIENT,
    SERVER,
    SERVER_NAME,
    check_dates,
    load_der,
    verify_chain,
    verify_signature,
)

__all__ = [
    "CLIENT",
    "CRL_DAYS",
    "OFFLINE_CRL_DAYS",
    "SERVER",
    "SERVER_NAME",
    "Authority",
    "PrivateKey",
    "PublicKey",
    "check_dates",
    "common_name",
    "csr_pem",
    "der",
    "end_of",
    "enrol_number",
    "fingerprint",
    "is_due",
    "issue_client",
    "issue_server",
    "key_of_csr",
    "key_pem",
    "load_der",
    "load_key",
    "load_pem",
    "make_ca_csr",
    "make_csr",
    "ms",
    "new_issuing",
    "new_key",
    "new_root",
    "password_of",
    "pem",
    "renew_at",
    "renew_issuing",
    "serial",
    "spki",
    "spki_of",
    "verify_chain",
    "verify_signature",
]
