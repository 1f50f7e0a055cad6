"""Which of these tests a system can run."""

import sys

collect_ignore = [] if sys.platform == "linux" else ["test_independent_x3dh.py"]
