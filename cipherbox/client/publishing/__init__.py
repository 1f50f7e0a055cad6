"""From a program's messages to sealed envelopes: routes, keys, batches, files.

Map, written by `make generate`:

    allow_list   The allow-list: whom this sender permits as recipients behind an exchange.
    calls        The calls of `Client` that publish.
    files        Sends files of any size: part after part through a bounded window, then the
                 manifest.
    idempotency  Publish once: an idempotency key makes a repeated publish harmless, also from
                 another process and after a crash.
    parts        Parts and manifests of files: messages <-> what they say.
    publish      Publish messages: seal them, keep them in the outbox, send them, wait for HQ's
                 confirm.
    publisher    A publisher: messages in, batches out, by itself and without a timer.
    routes       What HQ last said about each route this client sends to, in ``routes.json``: so
                 that it can seal while HQ is away.
    sealer       Resolve where messages go, and seal envelopes for those who read them there.
    sources      What a transfer reads: a file, a copy of one, or a directory, whose files are read
                 one behind the other.
    splitting    What a program may give as messages, and how many of them fit into an envelope.
"""
