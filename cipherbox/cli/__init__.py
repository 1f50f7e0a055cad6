"""The command line: the only place that prints and the only one that starts trio.

A command's module is imported when the command runs, so that `version` and `--help` answer at once
and `serve` loads nothing that can open a message.
"""
