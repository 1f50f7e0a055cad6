"""What the agent does with folders: look at them (scan), move their files (place), explain them (guide)."""
