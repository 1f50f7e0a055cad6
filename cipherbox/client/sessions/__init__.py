"""Sessions of this home with other clients, and their prekeys.

Map, written by `make generate`:

    keys              Private prekeys in the inbox's database, and the offers made from them for HQ.
    old               Migrate sessions stored before version 0.5 in their own file,
                      `sessions.sqlite3`, with both halves in one.
    prekeys           Exchange prekeys with HQ: keep this client's in supply there, and begin
                      sessions with others'.
    receiving_chains  The receiving halves of this home's sessions, in the inbox's database,
                      encrypted under its local key.
    secure_socket     A session over a stream, and a file for sessions: all that two programs need
                      to talk without HQ.
    sending_chains    The sending halves of this home's sessions: sending chains, in the outbox's
                      database, encrypted under its local key.
    sessions          This home's sessions.
    superseded        Sessions in which nothing more is said: their other end, or this one, has
                      begun with other keys.
"""
