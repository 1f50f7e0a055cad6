"""Record what this home receives, exactly once, before it is acknowledged and receipted.

Map, written by `make generate`:

    arriving_hashes   Hash a file's parts as they arrive, so that a complete file need not be read
                      back.
    completion        Complete files in the background: verify complete ones without holding the
                      inbox, and name them.
    content_types     How the inbox records an envelope, by the content type of its message.
    decrypted_files   Decrypt stored files to disk: where a person chooses, or for the duration of a
                      handler's call.
    encrypted_lines   The lines of received messages and files, encrypted in the inbox's database
                      under the home's local key.
    encrypting        Encrypt data that is stored in clear in a home that has a password now: lines,
                      files, and contents that wait for a handler.
    file_check        Verify a file against its manifest before it gets its name: every part is read
                      back from disk and hashed, except for those that were hashed as they arrived
                      (`arriving_hashes`).
    handler_contents  Contents that wait for a handler, encrypted in the inbox's database under the
                      home's local key.
    hidden            Hidden files: storage of files' bytes until they get their names, or
                      permanently under the local key.
    inbox             The inbox: record received envelopes and append their messages to the readable
                      file, atomically.
    incoming_files    Receive files: write arriving data to hidden files, verify it there, and give
                      complete files their names.
    inspect           Inspect a home's inbox while other programs use it: received, refused and
                      waiting messages.
    lines             Format received messages as readable JSON lines: ``message_id, sender_id,
                      sent_timestamp, content``, and ``headers`` if any.
    lines_file        The file ``received_messages.jsonl``: appended to and synced within the
                      inbox's transaction, even if others move or change it.
    places            Places of received files on this machine: names that stay below their
                      directory, and files that never replace others.
    schema            The inbox's database: its file name, the migrations that create its tables,
                      oldest first, and how it is opened.
    transfers         The inbox's rows of incoming files; `incoming_files` has the rules.
    unpacking         Unpack a directory that arrived as one file into a hidden directory, which
                      then gets its name.
"""
