"""Compute the values that the caller will ask next in a background thread.

One thread computes `compute(place)` for the places from the one that the caller will ask next, `stride` apart; the caller
takes them in any order. Asking for another place than the expected one only costs waiting: the value is a pure function of
the place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Prefetcher(Generic[Value]):
    """Keeps `depth` places ahead of the caller.

    `wait_seconds` is the time the caller has spent in `get` so far.
    """

    def __init__(self, compute: Callable[[int], Value], depth: int = 2, stride: int = 1):
        assert depth >= 1 and stride >= 1, (depth, stride)
        self.wait_seconds = 0.0
        self._compute = compute
        self._depth = depth
        self._stride = stride
        self._condition = threading.Condition()
        self._ready: dict[int, Value | _Failure] = {}
        self._next: int | None = None
        self._closed = False
        # A daemon, so that a caller who forgets to close does not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="cktrain-prefetch", daemon=True)
        self._thread.start()

    def get(self, place: int) -> Value:
        """The value of `place`, waited for if need be. An exception of `compute(place)` is raised here."""
        began = time.perf_counter()
        with self._condition:
            assert not self._closed, "get after close"
            self._expect(place)
            self._condition.wait_for(lambda: place in self._ready)
            value = self._ready.pop(place)
            self._expect(place + self._stride)
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

    def _expect(self, place: int) -> None:
        self._next = place
        for other in [other for other in self._ready if other not in self._wanted(place)]:
            del self._ready[other]
        self._condition.notify_all()

    def _wanted(self, place: int) -> range:
        return range(place, place + self._depth * self._stride, self._stride)

    def _missing(self) -> int | None:
        if self._next is None:
            return None
        return next((place for place in self._wanted(self._next) if place not in self._ready), None)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._missing() is not None)
                if self._closed:
                    return
                place = self._missing()
            assert place is not None
            value: Value | _Failure
            try:
                value = self._compute(place)
            except BaseException as error:  # handed to the caller, whatever it is
                value = _Failure(error)
            with self._condition:
                self._ready[place] = value
                assert self._next is not None
                self._expect(self._next)


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error
