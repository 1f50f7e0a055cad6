"""What this home receives: opened, recorded once, acknowledged, signed for.

Map, written by `make generate`:

    completion        Completes files beside the messages: checks what is whole, without the inbox's
                      turn, and gives it its name.
    content_types     How the inbox records an envelope, by the content type of its message.
    decrypted_files   Files that are kept under the home's local key, written out in clear: where a
                      person says, or for a handler's call.
    encrypted_lines   What was received, kept in the inbox's database under the home's local key:
                      the lines of each envelope, and of each file when it is whole.
    encrypting        Encrypts what lies readable in a home that is under a password now: lines,
                      files, and what waits for a handler.
    file_check        Whether a file is what its manifest says: every part is hashed as it lies on
                      the disk, before the file gets its name.
    handler_contents  Contents that wait for a handler: kept in the inbox's database, encrypted
                      under the home's local key.
    hidden            Hidden files: where the bytes of files lie until these get their names, and
                      under the local key for ever.
    inbox             The inbox: which envelopes this home has recorded, and the readable file of
                      their messages, in one step.
    incoming_files    Files on their way in: what came is written to its place, checked as it lies
                      there, and given its name.
    inspect           Looks into a home's inbox, whatever else runs: what was received, what was
                      refused and why, what waits.
    lines             The readable lines of received messages, as JSON: ``message_id, sender_id,
                      sent_timestamp, content``, and ``headers`` when there are any.
    lines_file        ``received_messages.jsonl``: appended to and synced within the inbox's
                      transaction, whatever becomes of the file.
    places            Where what was received lies on this machine: names that cannot lead
                      elsewhere, and files that never replace others.
    schema            The inbox's database: its name, and the steps that make its tables, oldest
                      first.
    transfers         The inbox's rows of files on their way in; `arriving` has the rules.
    unpacking         A directory that came as one: its files are taken out of what came, into a
                      hidden directory that then gets its name.
"""
