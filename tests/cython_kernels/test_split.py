"""How work is divided, for every team of 1 to 192 threads: pure functions, so tested as such."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.cython_kernels import _runtime

THREADS = range(1, 193)


@given(st.integers(0, 2**40), st.sampled_from([1, 3, 12, 16, 32, 64]), st.integers(1, 192))
def test_ranges_cover_all_once_and_differ_by_one_grain(n: int, grain: int, threads: int) -> None:
    ranges = _runtime.split(n, grain, threads)
    assert len(ranges) == threads
    assert ranges[0][0] == 0 and ranges[-1][1] == n
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert all(begin <= end and (begin % grain == 0 or begin == n) for begin, end in ranges)
    # in whole grains, the last of which may be cut short by n
    units = [-(-(end - begin) // grain) for begin, end in ranges]
    assert max(units) - min(units) <= 1


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 191, 192, 768, 3001])
def test_every_team_covers_all_once(n: int) -> None:
    for threads in THREADS:
        for grain in (1, 16):
            owned = Counter(i for begin, end in _runtime.split(n, grain, threads) for i in range(begin, end))
            assert owned == Counter(range(n))


@pytest.mark.parametrize("items", [1, 7, 48, 384, 1000])
def test_dealing_falling_costs_is_balanced(items: int) -> None:
    """Costs n, n-1, ... 1: no hand exceeds the mean by more than the dearest item."""
    for threads in THREADS:
        hands = [0] * threads
        for item, owner in enumerate(_runtime.deal(items, threads)):
            hands[owner] += items - item
        assert max(hands) <= sum(hands) / threads + items


def test_small_work_is_done_alone() -> None:
    assert [_runtime.team_size(work, 192) for work in (0, 1, 65535)] == [1, 1, 1]
    assert _runtime.team_size(2**50, 192) == 192
    sizes = [_runtime.team_size(work, 192) for work in range(0, 10**7, 10**4)]
    assert sizes == sorted(sizes)
