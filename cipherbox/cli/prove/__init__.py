"""`prove`: load, kills and cut lines, then every confirmed message is looked for."""
