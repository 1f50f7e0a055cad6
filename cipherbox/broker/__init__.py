"""The pure core: commands and facts in, effects out; no IO, no clock, no randomness.

Map, written by `make generate`:

    broker        The Broker: one batch of commands in, its effects out.
    clients       Limits and contact lists of one client, and the queues it owns.
    consume       Consumers: credit, deliveries, fetch, ack, nack, resend.
    dead_letters  Dead letters: dead-letter an entry, redrive or discard a dead letter.
    enqueue       Append envelopes' entries to a queue, within the sender's quota for that queue.
    exchanges     Exchanges and bindings, as in AMQP 0-9-1: direct, fanout and topic.
    generations   An envelope whose id HQ knows: a duplicate, or a new generation that replaces the
                  old bytes.
    listing       Lists of exchanges, queues, bindings, clients and grants, in pages sorted by name.
    model         The core's input and output: commands, facts, effects, and the changes for the
                  store.
    publish       Publish envelopes: check each and put it into its queues.
    queues        One queue in memory: a head of bounded length, unacknowledged and requeued
                  entries, and counters.
    rights        Permissions, as the manual page `permissions` describes them.
    routes        Routing: find the queues of an envelope, such that every recipient gets it through
                  exactly one.
    state         The broker's state between batches, and the changes of the current batch.
    topology      Exchanges, queues, bindings, grants and clients: declare, delete, grant, revoke.
    usage         Usage of each client at HQ, in bytes and envelopes: waiting, delivered, or kept as
                  a dead letter.
"""
