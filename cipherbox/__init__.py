"""CipherBox: a blind message broker in one file.

The layers, from the ground up; each imports only what stands above it in this list.

    errors, limits    what can go wrong, and every bound
    portable          the only file that knows of Unix and Windows
    config, pki       settings and their files; certificates
    ops               logs, health, systemd
    tls, websocket,   the byte streams both ends use,
    transport         and connecting
    wire              frames <-> bytes, no IO
    envelope          the bytes both ends may know
    sealing           what needs a secret; the server never imports it
    broker            the pure core: routing, queues, credit, redelivery
    store             the port, and the databases behind it
    server, client    the two ends, on trio
    cli               commands; the only place that prints
"""

__version__ = "0.6.0"
