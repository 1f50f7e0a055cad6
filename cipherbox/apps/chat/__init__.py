"""Conversations between people.

Map, written by `make generate`:

    conversation  A conversation: the lines this client sends, their states, and received lines,
                  read from this home's inbox.
    lines         The lines of a conversation in the inbox's readable file: the last ones, then new
                  ones.
"""
