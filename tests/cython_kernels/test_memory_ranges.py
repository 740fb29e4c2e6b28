"""Ranges of addresses against a set of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cktrain.cython_kernels.memory_ranges import MemoryRanges

RANGE = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(RANGE, max_size=12), RANGE)
def test_ranges_are_the_set_of_their_addresses(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges, addresses = MemoryRanges(), set()
    for begin, end in added:
        ranges.add(begin, end)
        addresses |= set(range(begin, end))
    before, wanted = ranges.copy(), set(range(*asked))
    ranges.add(0, 41)
    assert before.covers(*asked) == (wanted <= addresses)
    assert before.meets(*asked) == bool(wanted & addresses)
    assert ranges.covers(*asked)
