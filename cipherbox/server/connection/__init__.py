"""One peer: its session, what comes in, what goes out, and how much memory it may hold.

Map, written by `make generate`:

    admission        Admission: identify a connection by its certificate, and decide whether it may
                     connect.
    backpressure     Back-pressure: memory HQ holds for its peers, by client, with a high and a low
                     water mark.
    budget           What each kind of frame costs, and what a client may spend in a minute.
    in_flight        Requests and publishes of one connection that HQ has not answered yet.
    incoming         The frame being received on one connection: its bytes are counted as they
                     arrive, and its rate is checked.
    listeners        Listeners: TCP, then TLS with a deadline and bounded concurrency, then
                     (WebSocket and) a session.
    outgoing         The send queue of one peer, and the task that sends it, in order.
    peer             The engine's view of a connection, and the notifications that all connections
                     get.
    registry         The registry of open connections: limits by client, and notifications to all of
                     them.
    sender_keys      Refuse envelopes that are signed by keys which have ended, when they are
                     published.
    session          One connection: a nursery with a reader and a writer; HQ's clock calls `tick`.
    unauthenticated  Unauthenticated connections: bounded by address and in total, before any TLS.
"""
