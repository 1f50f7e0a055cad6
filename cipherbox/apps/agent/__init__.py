"""The agent: sends what is put into a folder, receives into another, and explains both.

Map, written by `make generate`:

    agent       The agent: sends what is put into a folder, receives into another, and runs
                unattended.
    file_mover  Move settled files of `outgoing` to `sent`, `failed` or `refused`; a file that
                changed stays.
    guide       Prepare `outgoing` for people: a folder for each client, and a short README.
    pauses      Back-off for each file, destination and transfer, with the last reason reported.
    place       Move files out of `outgoing`, never over another file.
    scan        Scan `outgoing` for files that are complete.
    sending     Send the files of a folder: small files with the same recipients in one envelope,
                large ones in parts.
"""
