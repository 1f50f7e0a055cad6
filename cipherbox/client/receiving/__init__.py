"""From HQ's deliveries to recorded messages: look-ups, opening, refusals, receipts, handlers.

Map, written by `make generate`:

    attempts          What becomes of a message that a handler did not take: it waits (*later*), or
                      it is *bad*.
    calls             The calls of `Client` that consume.
    classify          Classify deliveries: new, known or refused; and open what is new.
    consumer          Deliveries: what HQ pushes from a queue, and what this client says back.
    contacts          Whom this client takes mail from: everybody HQ's CA certified, until a person
                      says otherwise.
    contacts_upload   Tell HQ whose mail this client takes, so that HQ refuses the rest at publish
                      time.
    delivery          One envelope that HQ delivered, and the acknowledgement ranges it becomes.
    faults            Whose fault an error is.
    handler           Handlers: a program's own function runs once for each message, in one
                      transaction with its result.
    inbox_lock        The lock of a home's inbox: one receiver at a time.
    lookups           Look up senders' keys at HQ in the background: a delivery that waits delays no
                      others.
    loop              The receive loop: source -> classify -> open -> record -> acknowledge.
    opening           Verify and open deliveries, and refuse what cannot be opened.
    pending_receipts  Pending receipts: signed acknowledgements due to each sender.
    ports             What receiving needs of a client, as the smallest protocols.
    progress          How far a receiver is: what it recorded, what it is writing, and what ended
                      it.
    receipts          Receipts from the recipients of this client's messages, consumed from the
                      mailbox `.sys`.
    receiver          The receiver: every message exactly once into
                      ``data/received_messages.jsonl``, whatever is cut off or sent again.
    recorder          Record opened envelopes in an open inbox, and complete files beside.
    refusals          Tell HQ in the background which envelopes were refused.
    refuser           Refuse what cannot be taken in: the receipt is recorded as pending before HQ
                      is told.
    supervised        Supervise a receiver: restart it after transient errors.
"""
