"""The agent: sends what is put into a folder, receives into another, and explains both.

Map, written by `make generate`:

    agent    The agent: sends what is put into a folder, receives into another, and never gives up.
    endings  Where a file of `outgoing` ends: in `sent`, `failed` or `refused`, or where it is,
             because it has changed.
    guide    Prepares `outgoing` for the person who works with it: a folder for each client, and a
             short README.
    pauses   Back-off for each file, address and transfer, with the last reason reported.
    place    Moves files out of `outgoing`, to where a person sees what became of them, and never
             over another file.
    scan     What lies in `outgoing`, and which of it is whole.
    sending  Sends the files of a folder: small ones bundled, an envelope for all that wait for the
             same recipients; large ones in parts.
"""
