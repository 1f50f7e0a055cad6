"""From HQ's deliveries to recorded messages: look-ups, opening, refusals, receipts, handlers.

Map, written by `make generate`:

    attempts          What becomes of a message that a handler did not take: it waits (*later*), or
                      it is *bad*.
    calls             The calls of `Client` that consume.
    classify          From deliveries to what is to be recorded: known already, new, or refused.
    consumer          Deliveries: what HQ pushes from a queue, and what this client says back.
    contacts          Whom this client takes mail from: everybody HQ's CA certified, until a person
                      says otherwise.
    contacts_upload   Tell HQ whose mail this client takes, so that HQ refuses the rest at publish
                      time.
    delivery          One envelope that HQ delivered, and the acknowledgement ranges it becomes.
    faults            Whose fault an error is.
    handler           Handlers: a program's own function runs once for each message, in one
                      transaction with its result.
    held_inbox        A home's inbox held open: its lock, what is written into it, and files that
                      get their names beside.
    lookups           Look-ups of senders' keys at HQ, beside the receiving: whoever waits for one
                      holds up nobody else.
    opening           Verifies and opens deliveries, and says to HQ what cannot be.
    pending_receipts  Receipts this client owes: its signed word to each sender on what became of
                      the sender's envelopes.
    ports             What receiving needs of a client, as the smallest protocols.
    receipts          Receipts others sent this client: taken in from the mailbox `.sys` by whatever
                      command is running.
    receiver          The receiver: every message once into ``data/received_messages.jsonl``,
                      whatever is cut off or sent again.
    refusals          What HQ is told about envelopes that were not taken in, beside the receiving.
    supervised        What runs day and night: it is begun again after every error that may pass by
                      itself.
"""
