"""Conversations between people."""
