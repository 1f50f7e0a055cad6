"""HQ's store in PostgreSQL."""
