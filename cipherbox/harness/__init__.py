"""The stage of demo, prove and bench: this program as several processes, and faults.

Map, written by `make generate`:

    disk              A disk of our own that can lose power and be full: an ext4 file system in a
                      file, on a loop device.
    failure           A process on the stage failed.
    fault_proxy       A TCP proxy in front of HQ: it cuts connections, lets nothing through, or is
                      slow.
    postgres_servers  PostgreSQL servers of our own for trials and tests: create, start, kill,
                      replicate, promote.
    stage             The stage: this same program, started as several processes, each stopped by
                      its pid.
    worker            A worker process that gets one task and reports in lines of JSON.
    workplace         The directory of one run of demo, prove or bench, and the processes that the
                      run starts: however the run ends, they end, and a temporary directory is
                      removed.
"""

RUN_VARIABLE = "CIPHERBOX_RUN"  # names the lock of the run that a process ends with: `workplace`
