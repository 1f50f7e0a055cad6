"""One peer: its session, what comes in, what goes out, and how much memory it may hold.

Map, written by `make generate`:

    admission        Who may connect, by certificate; and who is an admin.
    backpressure     Back-pressure: memory HQ holds for its peers, by client, with a high and a low
                     water mark.
    budget           What each kind of frame costs, and what a client may spend in a minute.
    in_flight        What one connection has asked and HQ has not answered yet.
    incoming         The frame that is coming in on one connection: its bytes are counted as they
                     come, and its pace is judged.
    listeners        Listeners: TCP, then TLS within a deadline and a bounded number at once, then
                     (WebSocket and) a session.
    outgoing         What waits to be sent to one peer, in order, and the task that sends it.
    peer             A connection as the engine sees it, and what all connections are told.
    registry         The open connections: how many HQ accepts, from whom, and what all of them are
                     told.
    session          One connection: a nursery with a reader and a writer; HQ's clock calls `tick`.
    unauthenticated  Connections that have not said who they are: bounded by address and in all,
                     before any TLS.
"""
