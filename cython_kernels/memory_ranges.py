"""A set of addresses, kept as ranges: which memory is known while a step is recorded."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class MemoryRanges:
    """A union of ranges [begin, end) of addresses; ranges that touch are one."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def copy(self) -> MemoryRanges:
        """Another set with the same addresses."""
        other = MemoryRanges()
        other._begins, other._ends = self._begins.copy(), self._ends.copy()
        return other

    def add(self, begin: int, end: int) -> None:
        """Put [begin, end) into the set."""
        if begin >= end:
            return
        first, last = bisect_left(self._ends, begin), bisect_right(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]

    def covers(self, begin: int, end: int) -> bool:
        """Whether all of [begin, end) is in the set."""
        at = bisect_right(self._begins, begin) - 1
        return begin >= end or (at >= 0 and end <= self._ends[at])

    def meets(self, begin: int, end: int) -> bool:
        """Whether some of [begin, end) is in the set."""
        at = bisect_right(self._ends, begin)
        return begin < end and at < len(self._begins) and self._begins[at] < end
