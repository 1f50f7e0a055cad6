"""A process on the stage failed."""


class StageFailed(Exception):
    """A process on the stage failed; the text says which, and the end of what it printed."""
