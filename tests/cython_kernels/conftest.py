"""Lets the tests of this folder import its table of ops: `from cases import CASES`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
