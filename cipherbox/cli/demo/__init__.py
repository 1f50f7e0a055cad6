"""`demo`: the labs scenario with real processes.

Map, written by `make generate`:

    blind    Has HQ any plaintext?
    command  `demo`: the labs scenario with real processes over mutual TLS, and a check of
             everything that was promised.
    hostile  `demo --hostile-hq`: an HQ that breaks its word in front of the user, and the commands
             that notice.
    items    The labs scenario: who takes part, what is sent to whom, and the four files that the
             demo makes.
    report   What the demo found, and how it is shown.
"""
