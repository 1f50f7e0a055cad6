"""`doctor`: what is wrong on this machine, and what to do about it.

Map, written by `make generate`:

    client    `doctor` on a client's machine: its files, its clock, its certificate, and the way to
              HQ step by step.
    command   `doctor`: find problems on this machine and what to do about them.
    findings  What `doctor` finds: one line for each thing it looked at, and what to do about it.
    hq        `doctor` on HQ's machine: looks at everything `serve` needs and changes nothing; HQ
              may be running.
"""
