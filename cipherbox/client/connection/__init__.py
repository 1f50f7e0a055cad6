"""The connection to HQ: one at a time, made again after each end, with its window of confirms."""
