"""Programs that stand on the client; nothing below knows them."""
