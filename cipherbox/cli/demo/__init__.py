"""`demo`: the labs scenario with real processes.

Map, written by `make generate`:

    blind    Search every file of HQ's directory for runs of bytes of known plaintexts.
    command  `demo`: the labs scenario with real processes over mutual TLS, and a check of every
             guarantee.
    hostile  `demo --hostile-hq`: a dishonest HQ, and the commands that detect it.
    items    The labs scenario: participants, routes, and the four files that the demo creates.
    report   The demo's report, and how it is printed.
"""
