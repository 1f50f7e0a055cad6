"""`doctor`: what is wrong on this machine, and what to do about it.

Map, written by `make generate`:

    client     `doctor` on a client's machine: files, clock, certificate, and the path to HQ step by
               step.
    command    `doctor`: find problems on this machine and what to do about them.
    findings   The findings of `doctor`: one line for each check, with its remedy.
    hq         `doctor` on HQ's machine: check everything that `serve` needs, and change nothing but
               leftovers.
    leftovers  Find what killed commands left behind, and remove it (`doctor --clean`).
"""
