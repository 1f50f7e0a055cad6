"""TLS and WebSocket streams, proxies, and connecting to one of several addresses."""
