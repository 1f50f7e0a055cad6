"""What this home sends: kept on its disk, sent until HQ has it, kept until recipients have
signed.

Map, written by `make generate`:

    access          The outbox from trio: its methods block on the disk, so they run in a thread, in
                    order.
    envelope_files  The files of large envelopes in ``outbox/``: written and synced before the
                    commit that names them, freed after the commit that drops them.
    folder_files    The agent's files, as the outbox knows them: which were taken, in which envelope
                    or transfer, what became of them.
    origins         What the outbox records in the same transaction as an envelope: its idempotency
                    key, and the files it was made of.
    outbox          The outbox: every envelope this home sealed, on disk before the first try on the
                    network.
    outcomes        What became of envelopes, until the outbox has it: many outcomes are written
                    together.
    queries         Queries of the outbox; `outbox` has the rules and writes.
    receipts        What recipients signed for, in the outbox: receipts are kept, bytes that nobody
                    owes a word on go.
    resealing       Seal an envelope of the outbox again, in the next generation, from the copy that
                    is kept.
    rows            Records of the outbox: what is written to it and what is read from it.
    sender          The one sender: every sealed envelope of this client goes through it, and every
                    outcome back.
    tracking        Track a message for its sender: the outbox's state, HQ's report, and the
                    recipients' receipts.
    transfers       The outbox's files under way: a reference to each file, and which of its parts
                    HQ has.
"""
