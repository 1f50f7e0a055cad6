"""From a program's messages to sealed envelopes: routes, keys, batches, files."""
