"""What the tests that boot guests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
