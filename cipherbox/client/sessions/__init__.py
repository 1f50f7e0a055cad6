"""Sessions of this home with other clients, and their prekeys."""
