"""The store: the port, and the databases behind it.

port.py      what HQ asks of a database, and what it may rely on
files.py     the seam between the stores and the disk
spool.py     large bodies as files beside the database
reserve.py   disk space kept back for acks, and whether there is room for more
sqlite/      the embedded database, the default
"""
