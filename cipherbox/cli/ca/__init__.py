"""`ca`: HQ's certificates and keys."""
