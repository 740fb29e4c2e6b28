"""The number of threads that a kernel set is asked for; the reference has no pool."""

_threads = 1


def set_num_threads(n: int) -> None:
    """Remember `n`, and change nothing: numpy's BLAS takes its number of threads from the environment."""
    global _threads
    if n < 1:
        raise ValueError(f"[kernels.set_num_threads] n is {n}, at least 1 is needed. Pass a positive number.")
    _threads = n


def num_threads() -> int:
    """Return what `set_num_threads` was given last, 1 before any call."""
    return _threads
