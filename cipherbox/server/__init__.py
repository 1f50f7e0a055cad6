"""HQ: trio around the pure core.  It never imports what opens an envelope.

    app.py         composition root: serve, graceful stop
    hq.py          what one running HQ is made of
    engine.py      the one task that owns the broker: batch, commit, distribute
    bodies.py      the bytes of envelopes between commit and delivery: a bounded cache, and the store behind it
    journal.py     what the log says of envelopes
    listeners.py   TLS and WebSocket listeners, handshakes
    session.py     one connection: reader, writer, heartbeat
    outgoing.py    what waits to be sent to one peer
    requests.py    frames -> commands and calls
    answers.py     what the core answered -> frames
    trust.py       certificates: who a connection is, what is revoked, the issuing CA
    directory.py   key bundles
    prekeys.py     prekeys for sessions, each handed out once
    enrolment.py   tokens and certificates for new clients
    setup.py       init, and the offline CA's side
    check.py       what `serve` needs besides the settings themselves
    counting.py    what the engine counts, once for each batch
    gauges.py      what HQ is like at this moment
    alerts.py      what an admin should look at now
    monitor.py     the metrics port: /metrics, /healthz, /readyz
    administration.py  an admin's requests that are not the core's: figures, kick, reload, drain
    reload.py      settings and certificates read again, all or nothing
    drain.py       before an upgrade: nothing new, what waits goes out, then the end
"""
