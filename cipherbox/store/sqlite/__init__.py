"""The embedded store.

0001_…sql     the schema, one file a version
database.py   the only file that knows sqlite3: opening, schema, transactions, errors
commit.py     writes one commit's changes
queries.py    load, facts, bodies, trace
registry.py   bundles, enrolments, certificates, settings
store.py      the Store: the port's rules over these
"""
