"""`demo`: the labs scenario with real processes."""
