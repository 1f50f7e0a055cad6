"""Sessions of this home with other clients, and their prekeys.

Map, written by `make generate`:

    keys              Private prekeys in the inbox's database, and the offers for HQ.
    old               Sessions as they were kept before version 0.5: in a file of their own,
                      `sessions.sqlite3`, with both halves in one.
    prekeys           Prekeys over the line: this client's, kept up at HQ; others', to begin
                      sessions with.
    receiving_chains  The halves of this home's sessions that hear, in the inbox's database, each
                      encrypted under the home's local key.
    secure_socket     A session over a stream, and a file for sessions: what two programs need to
                      talk without HQ.
    sending_chains    The halves of this home's sessions that speak: sending chains, in the outbox's
                      database, under the local key.
    sessions          This home's sessions.
    superseded        Sessions in which nothing more is said: their other end, or this one, has
                      begun with other keys.
"""
