"""The command line: the only place that prints and the only one that starts trio.

    main        the table of commands, errors into plain words and exit codes
    exits       the exit codes, and what each kind of error advises
    output      how things look: lines, tables, log lines, other parties' text made harmless
    options     option types and settings shared by commands, opening a client
    hq          init, serve                 enrol     enroll, join, approve, revoke
    send        send                        receive   receive, fetch
    topology    exchange, queue, binding, grant       route     route allow, list, resolve
    keys        keys list, fingerprint, pin, verify   status    status
    clients     clients list, show, roles, kick       operate   reload, drain
    top         top                         doctor    doctor; what it looks at in doctor_*.py and findings.py
    ca          ca export, sign, import     texts     manual, version
    demo        the labs scenario with real processes; its parts in demo_*.py

A command's module is imported when the command runs, so that `version` and `--help` answer at once and `serve` loads
nothing that can open a message.
"""
