"""CipherBox: a blind message broker in one file.

The layers stand from the ground up: each imports only layers that stand above it in this map. `cli`
is the only one that prints.

Map, written by `make generate`:

    errors         Every error CipherBox raises or sends.
    clock          The clock: the only place that asks the system for the time of day.
    classes        attrs classes that are completed when they are first used: `define` and `frozen`,
                   as in attrs.
    limits         Every bound of the system with its reason, and the rules for names.
    checks         Types at the door of the public API: a wrong one is named, with the parameter,
                   before anything else happens.
    concurrency    Waiting, waking, retrying and supervising: each mechanism once, on trio's clock.
    contact_lists  Whom a recipient takes mail from, as two lists: what its inbox goes by, and what
                   HQ may know of it.
    readable       Sizes, times and sentences as people read them, in a terminal and in a browser.
    spares         Spares: files that were freed a moment ago, to be written over instead of new
                   ones.
    portable       The only module that depends on Unix or Windows: file modes, locks, signals.
    config/        Settings: frozen classes, the TOML files they come from, and what they name.
    alerting       Alerts told to people: by a command, a webhook, mail.
    pki/           Certificates: create, read, and verify them against one profile; revocation
                   lists.
    net/           TLS and WebSocket streams, proxies, and connecting to one of several addresses.
    ops/           Operations: what keeps a running HQ observable.
    wire/          Frames to bytes and back, without IO.
    envelope/      Public formats: reading them needs no secret.
    sealing/       Seal and open envelopes: everything that needs a private key.
    broker/        The pure core: commands and facts in, effects out; no IO, no clock, no
                   randomness.
    store/         The store: the port, and the databases behind it.
    server/        HQ: trio around the pure core.
    client/        The client library on trio: publish, consume, receive, enrol.
    apps/          Programs that stand on the client; nothing below knows them.
    harness/       The stage of demo, prove and bench: this program as several processes, and
                   faults.
    cli/           The command line: the only place that prints and the only one that starts trio.
    __main__       Entry of the zipapp, of `python -m cipherbox` and of the installed command.
"""

__version__ = "0.6.0"
