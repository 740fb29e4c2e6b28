"""A flag that SIGINT, SIGTERM, SIGUSR1 or the clock raises, so that a run ends between two steps with a checkpoint.

The flag of each rank is part of the vector that is reduced in every step, so all ranks stop after the same one. A
second SIGINT interrupts at once.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """Context manager: within it the signals only raise the flag; the old handlers come back after it.

    At `stop_at`, seconds since the epoch, the flag is up without a signal.
    """

    def __init__(self, stop_at: float | None = None) -> None:
        self.stop_at = stop_at
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None or self.time_is_up

    @property
    def time_is_up(self) -> bool:
        """Whether `stop_at` has come."""
        return self.stop_at is not None and time.time() >= self.stop_at

    def __enter__(self) -> StopFlag:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _raise_flag(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
