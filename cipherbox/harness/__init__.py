"""The stage of demo, prove and bench: this program as several processes, and faults.

Map, written by `make generate`:

    failure           A process on the stage failed.
    fault_proxy       A TCP proxy in front of HQ that cuts or freezes connections.
    postgres_servers  PostgreSQL servers of our own for trials and tests: made, started, killed,
                      followed by standbys, promoted.
    stage             The stage: this same program, started as several processes, each ended by its
                      own pid.
    worker            A process that does one task, told and answered in lines.
"""
