"""How long a rank waited for others: the `comm` of the log line."""

from __future__ import annotations

import time
from types import TracebackType


class CommTimer:
    """`with comm_timer:` adds the time of the block to `seconds`. Not to be nested."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> CommTimer:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._began
