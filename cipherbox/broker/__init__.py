"""The pure core: commands and facts in, effects out; no IO, no clock, no randomness.

Map, written by `make generate`:

    broker        The Broker: one batch of commands in, its effects out.
    clients       How much one client may have, and the queues it has.
    consume       Consumers and what they do: credit, deliveries, fetch, ack, nack, resend.
    dead_letters  Dead letters that somebody looked at: back into their queue, or dropped for good.
    enqueue       Put an envelope's entry at the end of a queue, within the sender's quota of that
                  queue.
    exchanges     Exchanges and bindings, as in AMQP 0-9-1: direct, fanout and topic.
    generations   An envelope whose id HQ knows: a duplicate, or a new generation that replaces the
                  old bytes.
    listing       What one may see of exchanges, queues, bindings, clients and grants, in pages
                  sorted by name.
    model         What goes into the core and what comes out: commands, facts, effects, and the
                  changes for the store.
    publish       One envelope's way into queues.
    queues        One queue in memory: a head of bounded length, what is out with consumers, what
                  came back, and counters.
    rights        Who may do what.
    routes        Which queues an envelope goes into: the right to publish, the route, and every
                  recipient in exactly one queue.
    state         What HQ holds in memory between batches, and what one batch has done so far.
    topology      Exchanges, queues, bindings, grants and clients: declare, delete, show.
    usage         What each client has at HQ, in bytes and envelopes: waiting, delivered, or kept as
                  a dead letter.
"""
