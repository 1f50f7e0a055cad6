"""The connection to HQ: reconnected when it ends, with its window of unconfirmed publishes.

Map, written by `make generate`:

    confirm_window  The window of publishes that HQ has not confirmed yet, in the order they were
                    published.
    connection      One connection to HQ, from HELLO to its end.
    rate_limit      Rate limit for requests to HQ that other clients can cause.
    reconnecting    A connection to HQ that reconnects for as long as the client is open.
"""
