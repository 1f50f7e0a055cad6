"""From a program's messages to sealed envelopes: routes, keys, batches, files.

Map, written by `make generate`:

    allow_list   The allow-list: the recipients that this sender permits behind each exchange.
    calls        The calls of `Client` that publish.
    files        Send files of any size: their parts through a bounded window, then the manifest.
    idempotency  Publish once: an idempotency key makes a repeated publish harmless, also from
                 another process and after a crash.
    parts        Encode and decode parts and manifests of files; the manual page `files` has the
                 bytes.
    publish      Publish messages: seal them, keep them in the outbox, send them, wait for HQ's
                 confirm.
    publisher    A publisher: batches messages automatically and without a timer.
    routes       HQ's last answer for each route this client sends to, cached in ``routes.json`` so
                 that it can seal while HQ is unreachable.
    sealer       Resolve where messages go, and seal envelopes for those who read them there.
    sources      The source of a transfer: a file, a copy of one, or a directory, whose files are
                 read one after another.
    splitting    Convert what a program publishes to messages, and split them into envelopes.
"""
