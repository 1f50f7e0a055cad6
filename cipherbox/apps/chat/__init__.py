"""Conversations between people.

Map, written by `make generate`:

    conversation  A conversation: lines sent at once, their states, and what the others wrote, read
                  from this home's inbox.
    lines         The lines of a conversation in the inbox's readable file: the last of them, and
                  what is added.
"""
