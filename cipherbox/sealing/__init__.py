"""Seal and open envelopes: everything that needs a private key.

HQ's server never imports this package; tests/test_layers.py enforces this.

Map, written by `make generate`:

    body              Encode messages as the plaintext of a body, and back, in columns: all lengths,
                      then types and headers, then all contents.
    encrypted_file    Files encrypted under the home's local key, with random access for reads and
                      writes.
    identity          A client's private keys: the signing keys that are its identity, and its
                      encryption keys, retired ones included.
    key_file          Private keys at rest: one file, encrypted under a 32-byte local key or under a
                      password.
    local_secret_box  Encrypt a client's secrets under its home's local key: content keys, session
                      state and received content.
    open              Open an envelope: verify and decrypt it into messages.
    primitives        The cryptographic calls that everything else is built on: no options, one
                      label for each use, no constructions of our own.
    ratchet/          Sessions between two clients: an asynchronous handshake (PQXDH), then a Double
                      Ratchet.
    rsa               The stanza `rsa-oaep`, and RSA private keys: generated, or imported from PEM
                      files as OpenSSL writes them.
    seal              Seal messages into an envelope.
    stanzas           Stanzas: the content key wrapped for one recipient.
"""
