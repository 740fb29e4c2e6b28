"""Arenas: where every array of a run lives.

An `Arena` is one contiguous, anonymous region, 2 MiB aligned, advised to use huge pages; arrays are cut from it one
after the other and never given back. `arena_accounts` says what all arenas hold. Within `planning()` arenas have sizes
and no memory, so that a run's memory can be added up, by the code that will ask for it, before anything is allocated.
"""

from __future__ import annotations

import itertools
import mmap
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

HUGE_PAGE = 2 << 20
CACHE_LINE = 64

Shape = tuple[int, ...]
Allocate = Callable[[int], np.ndarray]
"""nbytes -> (nbytes,) uint8 zeros, 2 MiB aligned."""


_ACCOUNTS: dict[int, tuple[str, int]] = {}
"""Name and bytes of each arena whose memory exists, by number."""
_NUMBERS = itertools.count()
_PLANNED: ContextVar[Counter[str] | None] = ContextVar("planned arenas", default=None)


def arena_accounts() -> Counter[str]:
    """Bytes of all arenas of this process whose memory exists, by the arena's name."""
    accounts: Counter[str] = Counter()
    for name, nbytes in list(_ACCOUNTS.values()):
        accounts[name] += nbytes
    return accounts


@contextmanager
def planning() -> Iterator[Counter[str]]:
    """Within the block arenas take no memory, and their arrays have a shape alone.

    Gives the bytes that were asked for, by the arena's name.
    """
    token = _PLANNED.set(Counter())
    try:
        accounts = _PLANNED.get()
        assert accounts is not None
        yield accounts
    finally:
        _PLANNED.reset(token)


def shape_alone(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An array of this shape whose elements are all the same one."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, (0,) * len(shape))


class Arena:
    """A region of `nbytes` for one purpose; pages become real when they are first touched."""

    def __init__(self, name: str, nbytes: int, allocate: Allocate | None = None) -> None:
        """With `allocate` the memory is a group's, whose ranks then work on it in place (`Group.allocate`).

        Raises MemoryError, naming the arena and its size, when the system refuses the address space.
        """
        self.name = name
        self.capacity = nbytes
        self.used = 0
        size = round_up(max(nbytes, 1), HUGE_PAGE)
        planned = _PLANNED.get()
        self.is_planned = planned is not None
        if planned is not None:
            planned[name] += nbytes
            return
        if allocate is not None:
            self._bytes = allocate(size)
            self._account()
            return
        try:
            self._map = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(
                f"[memory] the {name} arena needs {size:,} bytes and the system refuses: {error.strerror}. "
                "Use a smaller micro-batch, memory.checkpointing: block, or more ranks"
            ) from None
        raw = np.frombuffer(self._map, dtype=np.uint8)
        start = -raw.ctypes.data % HUGE_PAGE
        if whole := nbytes // HUGE_PAGE * HUGE_PAGE:  # the end, of no whole page, is not rounded up to one
            self._map.madvise(mmap.MADV_HUGEPAGE, start, whole)
        self._bytes = raw[start : start + size]
        self._account()

    def array(self, shape: Shape, dtype: np.dtype) -> np.ndarray:
        """The next array of this arena, cache-line aligned; zero until written."""
        nbytes = nbytes_of(shape, dtype)
        start, self.used = self.used, self.used + round_up(nbytes, CACHE_LINE)
        if self.is_planned:
            return shape_alone(shape, dtype)
        assert self.used <= self._bytes.size, f"{self.name} arena: {self.used} of {self._bytes.size} bytes"
        return self._bytes[start : start + nbytes].view(dtype).reshape(shape)

    def _account(self) -> None:
        """Note this arena until the last of its arrays is gone."""
        owner = self._bytes
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        number = next(_NUMBERS)
        _ACCOUNTS[number] = (self.name, self.capacity)
        weakref.finalize(owner, _ACCOUNTS.pop, number, None).atexit = False


def nbytes_of(shape: Shape, dtype: np.dtype) -> int:
    """Bytes of an array."""
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size


def round_up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple
