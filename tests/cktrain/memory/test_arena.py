"""Arenas: alignment, huge pages, what is refused, and what accounts and plans say."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from cktrain.memory.arena import CACHE_LINE, HUGE_PAGE, Arena, arena_accounts, planning

FP32 = np.dtype(np.float32)


def span(array: np.ndarray) -> tuple[int, int]:
    start = array.ctypes.data
    return start, start + array.nbytes


def test_an_arena_starts_on_a_huge_page_and_its_arrays_on_cache_lines():
    arena = Arena("test", 10_000)
    arrays = [arena.array(shape, FP32) for shape in [(3,), (5, 7), (0, 4), (), (100,)]]
    assert arrays[0].ctypes.data % HUGE_PAGE == 0
    assert all(a.ctypes.data % CACHE_LINE == 0 for a in arrays if a.size)
    assert all(a.sum() == 0 for a in arrays)
    for (_, end), (start, _) in itertools.pairwise(span(a) for a in arrays if a.size):
        assert end <= start


def huge_bytes(array: np.ndarray) -> int:
    """Bytes in huge pages of the mapping that the array lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= array.ctypes.data < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("the array lies in no mapping")


def test_an_arena_lies_in_huge_pages_where_the_system_gives_them():
    array = Arena("test", 32 << 20).array((32 << 20,), np.dtype(np.uint8))
    array.fill(1)
    never = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert (huge_bytes(array) == 0) if never else (huge_bytes(array) >= HUGE_PAGE)


def test_a_size_that_cannot_be_had_is_named():
    with pytest.raises(MemoryError, match=r"the weights arena needs 1,152,921,504,606,846,976 bytes"):
        Arena("weights", 1 << 60)


def test_an_arena_refuses_more_than_it_has():
    with pytest.raises(AssertionError, match="small arena"):
        Arena("small", 100).array((HUGE_PAGE,), FP32)


def test_accounts_name_what_exists_and_no_more():
    held = arena_accounts()
    array = Arena("accounted", 1000).array((100,), FP32)
    view = array[10:20]
    assert (arena_accounts() - held) == {"accounted": 1000}
    del array
    assert (arena_accounts() - held) == {"accounted": 1000}  # a view keeps it
    del view
    assert arena_accounts() == held


def test_a_planned_arena_has_a_size_and_no_memory():
    held = arena_accounts()
    with planning() as accounts:
        array = Arena("huge", 1 << 60).array((1 << 58,), FP32)
        assert array[5:9].reshape(2, 2).shape == (2, 2)
        assert array.nbytes == 1 << 60
    assert accounts == {"huge": 1 << 60}
    assert arena_accounts() == held
