"""Frames to bytes and back, without IO.

Map, written by `make generate`:

    codec       Encode and decode one frame: `length u32 | kind u8 | body`, where length counts kind
                and body.
    connection  One end of a connection without IO: bytes in, events out; frames in, bytes out.
    document    The tables of the manual page `protocol`, made from the table of frames and the tree
                of errors.
    fields      The building blocks of the table of frames: field makers, and the decorators that
                turn a class into a frame.
    frames      The table of frames: every kind, who may send it, its fields in order.
    token       The enrolment token: one line of text with everything a machine needs to join HQ,
                and the secret that authorizes it.
"""
