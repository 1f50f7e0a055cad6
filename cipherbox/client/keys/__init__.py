"""This client's keys and certificate, and whose keys of others it believes."""
