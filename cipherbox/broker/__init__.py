"""The pure core: no IO, no clock, no randomness; commands and facts in, effects out.

model.py      commands, facts, effects, changes: what goes in and what comes out
exchanges.py  exchanges and bindings: which queues a routing key leads to
queues.py     one queue: its head in memory, what is out, what came back, its counters
rights.py     who may do what
publish.py    one envelope's way into queues: dedupe, routing, recipients, quota
consume.py    consumers, credit, fetch, ack, nack, resend
topology.py   declare, bind, grant, purge
listing.py    what one may see of all that
core.py       the Broker: one batch in, its effects out
"""
