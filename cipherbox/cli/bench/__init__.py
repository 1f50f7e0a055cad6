"""`bench`: this machine's speed at the whole job.

Map, written by `make generate`:

    command   `bench`: how fast this machine is at the whole job, measured from first publish to
              last confirmed acknowledgement.
    files     `bench --files`: an agent sends what lies in its folder, a receiver has it as files
              again.
    measured  What measured processes share: reports as lines of JSON, and the timed piece of work.
    play      One measurement: HQ, senders and receivers are started, told to go together, and asked
              what they saw.
    work      What one measurement measures, in options and in words.
    worker    What a measured process does: it gets its task as one line of JSON, says that it is
              ready, waits for the word, works, and says in one line of JSON when it began, when it
              ended, and what CPU time that took.
"""
