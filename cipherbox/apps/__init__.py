"""Programs that stand on the client; nothing below knows them.

Map, written by `make generate`:

    agent/  The agent: sends what is put into a folder, receives into another, and explains both.
    chat/   Conversations between people.
    page/   The page: this client in the browser of its own machine, on loopback.
    pipe/   Byte streams between two clients.
"""
