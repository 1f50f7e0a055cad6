"""Byte streams between two clients.

Map, written by `make generate`:

    frames  The frames of a pipe: one message each, sealed like every other.
    mail    Mail that arrives while a pipe holds the mailbox: its peer's frames go to the pipe,
            messages into the inbox.
    pipe    A bidirectional pipe between two clients: bytes arrive in order, each exactly once.
"""
