"""`prove`: load, kills and cut lines, then every confirmed message is looked for.

Map, written by `make generate`:

    command   `prove`: check on this machine that no confirmed message is lost or duplicated,
              whatever is killed.
    database  The database of a trial, and its faults.
    play      The trial: senders and receivers under load, while HQ, senders and receivers are
              killed and connections cut.
    worker    A sender under trial: publishes numbered messages until it is killed or stopped, and
              logs those that HQ confirmed.
"""
