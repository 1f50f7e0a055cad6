"""`keys`: keys of this machine and of others."""
