"""Who is who: certificates, enrolments, key bundles, prekeys, revocation lists."""
