"""Frames from clients, answered: commands for the broker, and what HQ answers without it."""
