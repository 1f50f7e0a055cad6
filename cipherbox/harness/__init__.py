"""The stage of demo, prove and bench: this program as several processes, and faults.

Map, written by `make generate`:

    failure           A process on the stage failed.
    fault_proxy       A TCP proxy in front of HQ that cuts or freezes connections.
    postgres_servers  PostgreSQL servers of our own for trials and tests: create, start, kill,
                      replicate, promote.
    stage             The stage: this same program, started as several processes, each stopped by
                      its pid.
    worker            A worker process that gets one task and reports in lines of JSON.
"""
