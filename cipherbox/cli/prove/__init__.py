"""`prove`: load, kills and cut lines, then every confirmed message is looked for.

Map, written by `make generate`:

    command   `prove`: that nothing confirmed is lost and nothing comes twice, on this machine,
              whatever is killed.
    database  The database of a trial: what it is, and what can happen to it.
    play      The trial: senders and receivers under load, while HQ, senders and receivers are
              killed and connections cut.
    worker    A sender under trial: publishes numbered messages for as long as it lives, and writes
              down what HQ confirmed.
"""
