"""What `test_independent` compares with has no wheel for macOS."""

import sys

collect_ignore = [] if sys.platform == "linux" else ["test_independent.py"]
