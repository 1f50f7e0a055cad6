"""`bench`: this machine's speed at the whole job.

Map, written by `make generate`:

    command       `bench`: this machine's speed end to end, from the first publish to the last
                  confirmed acknowledgement.
    files         `bench --files`: an agent sends the files in its folder, and a receiver writes
                  them to disk.
    measured      Shared by the measured processes: reports as lines of JSON, and the timed part of
                  the work.
    peer_clients  The clients of `bench --compare`: as little as a peer's protocol permits, over a
                  blocking socket.
    peers         `bench --compare`: the same messages through another broker's server, if it is
                  installed.
    play          Run one measurement: start HQ, senders and receivers, release them together,
                  collect their reports.
    work          The parameters of a measurement, and its title.
    worker        A measured process: reads its task as one line of JSON, reports that it is ready,
                  waits for the signal, works, and reports in one line of JSON its start, its end,
                  and the CPU time used.
"""
