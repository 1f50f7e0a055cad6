"""The connection to HQ: one at a time, made again after each end, with its window of confirms.

Map, written by `make generate`:

    confirm_window  What this client published and HQ has not yet confirmed, in the order it was
                    published.
    connection      One connection to HQ, from HELLO to its end.
    rate_limit      How often this client asks HQ for something that others make it ask for.
    reconnecting    The lasting connection: one link after another, for as long as the client is
                    open.
"""
