"""Types of the loops that measure the machine's limits, documented in peak.pyx."""

from collections.abc import Sequence

import numpy as np

def multiply_adds(bf16: bool, steps: int) -> int: ...
def stream(out: Sequence[np.ndarray], inputs: Sequence[np.ndarray], streaming: bool = False) -> int: ...
