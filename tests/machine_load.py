"""How much longer than its CPU time a computation takes now: what bounds in seconds are stretched by on a machine that
has other work. A promise to users stays what it is; what tests add to it for processes that end is multiplied.
"""

import time

_MEASURED_S = 0.05


def stretch() -> float:
    """1 on an idle machine, 3 where three processes share each core; measured in 0.05 s of CPU time."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < _MEASURED_S:
        pass
    return max(1.0, (time.monotonic() - began) / _MEASURED_S)
