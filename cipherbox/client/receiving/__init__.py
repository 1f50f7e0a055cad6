"""From HQ's deliveries to recorded messages: look-ups, opening, refusals, receipts, handlers.

Map, written by `make generate`:

    acknowledger      Acknowledge what is recorded, many envelopes at a time.
    attempts          Retries of messages that a handler did not accept: *later* means they wait,
                      *bad* may park them.
    calls             The consuming calls of `Client`.
    classify          Classify deliveries: new, known or refused; and open what is new.
    consumer          Consumers: deliveries that HQ pushes from a queue, within a credit.
    contacts          Contact lists: the senders this client accepts mail from.
    contacts_upload   Upload the contact lists to HQ, so that HQ refuses other senders at publish
                      time.
    delivery          One envelope that HQ delivered, and the acknowledgement ranges it becomes.
    faults            Whose fault an error is, and so what it affects: one envelope, one attempt, or
                      all of this client's work.
    handler           Handlers: a program's own function runs once for each message, in one
                      transaction with its result.
    inbox_lock        The lock of a home's inbox: one receiver at a time.
    lookups           Look up senders' keys at HQ in the background, so that a waiting delivery
                      delays no others.
    loop              The receive loop: source -> classify -> open -> record -> acknowledge.
    opening           Verify and open deliveries, and refuse what cannot be opened.
    pending_receipts  Pending receipts: signed acknowledgements due to each sender.
    ports             What receiving needs of a client, as the smallest protocols.
    progress          How far a receiver is: what it recorded, what it is writing, and what ended
                      it.
    receipts          Receipts from the recipients of this client's messages, consumed from the
                      mailbox `.sys`.
    receiver          The receiver: write every message exactly once to
                      ``data/received_messages.jsonl``, despite crashes and redelivery.
    recorder          Record opened envelopes in an open inbox, and complete files beside.
    refusals          Tell HQ in the background which envelopes were refused.
    refuser           Refuse what cannot be taken in: the receipt is recorded as pending before HQ
                      is told.
    supervised        Supervise a receiver: restart it after transient errors.
"""
