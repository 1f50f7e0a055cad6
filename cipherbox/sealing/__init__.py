"""What needs a secret.  HQ's server never imports this package; a test holds it to that.

primitives.py  labels, key derivation, the two body ciphers
stanzas.py     wrap and unwrap the content key, by stanza type
rsa.py         the stanza of RSA keys; their PEM files
body.py        messages <-> the body's plaintext
identity.py    a client's private keys; signing; making bundles
keyfile.py     private keys at rest
seal.py        messages -> envelope
open.py        envelope -> messages
sessions/      handshake and Double Ratchet between two clients
secure.py      the same without HQ: SecureContext, HandshakeBuilder
"""
