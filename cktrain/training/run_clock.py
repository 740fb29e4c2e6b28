"""How long a run has trained: its steps, validations and saves, in all its parts; what it was stopped for does not count."""

from __future__ import annotations

import time


class RunClock:
    """Counts on from what a checkpoint has; rank 0's is the one that all ranks go by."""

    def __init__(self) -> None:
        self._before = 0.0
        self._began: float | None = None

    def begin(self, before: float) -> None:
        """Training begins, after `before` seconds in the parts that it goes on from."""
        self._before, self._began = before, time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training so far; 0 where it has not begun."""
        return 0.0 if self._began is None else self._before + time.monotonic() - self._began
