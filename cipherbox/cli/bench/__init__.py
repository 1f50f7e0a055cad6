"""`bench`: this machine's speed at the whole job."""
