"""Sans-IO: frames <-> bytes.

fields.py      how a field lies on the wire; the decorators of the table
frames.py      the table of frames: the one place where a frame is added
codec.py       encode and decode one frame; the fast paths of SEND and DELIVER
connection.py  one end of a connection: bytes in, events out
token.py       the enrolment token
document.py    the manual's tables, made from the table of frames
"""
