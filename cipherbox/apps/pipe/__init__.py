"""Byte streams between two clients."""
