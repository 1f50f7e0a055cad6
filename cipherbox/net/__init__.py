"""TLS and WebSocket streams, proxies, and connecting to one of several addresses.

Map, written by `make generate`:

    connecting  Parse addresses, connect to one, and read a stream into frames.
    proxy       Connect to HQ through a proxy: HTTP CONNECT and SOCKS5.
    tls         TLS 1.3 over TCP as a trio Stream, and the contexts of both ends.
    websocket   The same bytes in binary WebSocket messages, inside the same TLS, for browsers and
                for networks that allow nothing else.
"""
