"""The pure core: no IO, no clock, no randomness; commands and facts in, effects out.

Each module imports only modules above it in this list:

model.py         commands, facts, effects, changes: what goes in and what comes out
exchanges.py     exchanges and bindings: which queues a routing key leads to
usage.py         what each client has at HQ, and how much it may have
queues.py        one queue: its head in memory, what is unacknowledged, its counters
rights.py        who may do what
state.py         BrokerState: all of that in memory, and what one batch has done so far
clients.py       limits and contact lists of one client
dead_letters.py  dead-letter an entry; redrive or discard dead letters
consume.py       consumers, credit, fetch, ack, nack, resend
topology.py      declare, bind, grant, purge
listing.py       lists of exchanges, queues, bindings, clients and grants
routes.py        which queues an envelope goes into
enqueue.py       an entry at the end of a queue, within its quota
generations.py   a duplicate, or a new generation that replaces the old one
publish.py       one envelope's way into queues
broker.py        Broker: one batch of commands in, its effects out
"""
