"""`prove`: load, kills and cut lines, then every confirmed message is looked for.

Map, written by `make generate`:

    cast      The processes of a trial: HQ, senders and receivers, and what belongs to each.
    checker   Check a report of `cipherbox prove` with Python's standard library alone.
    command   `prove`: check on this machine that nothing promised is lost, duplicated, changed or
              reordered, whatever fails.
    database  The database of a trial, and its faults.
    faults    The faults of a trial: each is one function, which ends when the fault is over.
    history   Collect what senders, receivers and HQ saw into the report of a trial; page
              `reliability` has the format.
    play      The trial: senders and receivers under load, a calm phase, faults, a time to settle,
              the report.
    watch     Watch a trial: who makes progress, who waits for what, and how much memory and how
              many files each process uses.
    worker    A sender under trial: publishes numbered messages and files until it is killed or
              stopped, and logs what became of them.
"""
