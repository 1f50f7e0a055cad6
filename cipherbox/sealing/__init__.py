"""What needs a secret.

HQ's server never imports this package; a test holds it to that.

Map, written by `make generate`:

    body              Messages <-> the plaintext of a body, in columns: all lengths, then what some
                      messages have, then all contents.
    encrypted_file    Files that are encrypted under the home's local key and can be read and
                      written at any place.
    identity          A client's private keys: the signing keys that are its identity, and the
                      encryption keys, old ones included.
    key_file          Private keys at rest: one file, encrypted under a local 32-byte key or under a
                      password.
    local_secret_box  Secrets of a client, encrypted under the home's local key: content keys a
                      sender keeps, so that it can seal its own envelopes again, what sessions are
                      made of, and what was received.
    open              Envelope -> messages.
    primitives        The few cryptographic calls everything else is made of.
    ratchet/          Sessions between two clients: a handshake with somebody who may be away, then
                      a Double Ratchet.
    rsa               The stanza `rsa-oaep`, and RSA private keys: made here, or taken from PEM
                      files as OpenSSL writes them.
    seal              Messages -> envelope.
    stanzas           Stanzas: one recipient's wrapping of the content key.
"""
