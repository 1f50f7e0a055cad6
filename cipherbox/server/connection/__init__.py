"""One peer: its session, what comes in, what goes out, and how much memory it may hold."""
