"""Compute the next steps' values in a background thread.

One thread computes `compute(step)` for the steps from the one that the caller will ask next; the caller takes
them in any order. Asking for another step than the expected one only costs waiting: the value is a pure
function of the step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Prefetcher(Generic[Value]):
    """Keeps `depth` steps ahead of the caller.

    `wait_seconds` is the time the caller has spent in `get` so far.
    """

    def __init__(self, compute: Callable[[int], Value], depth: int = 2):
        assert depth >= 1, depth
        self.wait_seconds = 0.0
        self._compute = compute
        self._depth = depth
        self._condition = threading.Condition()
        self._ready: dict[int, Value | _Failure] = {}
        self._next: int | None = None
        self._closed = False
        # A daemon, so that a caller who forgets to close does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="cktrain-prefetch", daemon=True)
        self._thread.start()

    def get(self, step: int) -> Value:
        """The value of `step`, waited for if need be. An exception of `compute(step)` is raised here."""
        began = time.perf_counter()
        with self._condition:
            assert not self._closed, "get after close"
            self._expect(step)
            self._condition.wait_for(lambda: step in self._ready)
            value = self._ready.pop(step)
            self._expect(step + 1)
        self.wait_seconds += time.perf_counter() - began
        if isinstance(value, _Failure):
            raise value.error
        return value

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        with self._condition:
            self._closed = True
            self._ready.clear()
            self._condition.notify_all()
        self._thread.join()

    def _expect(self, step: int) -> None:
        self._next = step
        for other in [other for other in self._ready if not step <= other < step + self._depth]:
            del self._ready[other]
        self._condition.notify_all()

    def _missing(self) -> int | None:
        if self._next is None:
            return None
        steps = range(self._next, self._next + self._depth)
        return next((step for step in steps if step not in self._ready), None)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._missing() is not None)
                if self._closed:
                    return
                step = self._missing()
            assert step is not None
            value: Value | _Failure
            try:
                value = self._compute(step)
            except BaseException as error:  # handed to the caller, whatever it is
                value = _Failure(error)
            with self._condition:
                self._ready[step] = value
                assert self._next is not None
                self._expect(self._next)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error
