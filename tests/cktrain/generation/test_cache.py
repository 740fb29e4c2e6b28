"""The ring of a window's keys, and how far a sequence can go back."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain.generation.cache import SPARE_POSITIONS, KeyValueCache


def rows(first: int, count: int) -> np.ndarray:
    """(1, S, 1, 1): each token's number."""
    return np.arange(first, first + count, dtype=np.float32).reshape(1, count, 1, 1)


@pytest.mark.parametrize("window", [0, 10])
@pytest.mark.parametrize("dtype", [None, np.dtype(np.float64)])
def test_each_piece_sees_what_its_window_needs(window: int, dtype: np.dtype | None) -> None:
    cache = KeyValueCache(1000, 2, dtype)
    cache.sequence = 1
    for count in (3, 20, 300, 1, 400):
        first = cache.length
        cache.begin(count)
        keys, values = cache.extend("a", rows(first, count), -rows(first, count), window)
        cache.advance(count)
        seen = keys.ravel().tolist()
        assert seen[-count:] == list(range(first, first + count))
        assert seen == list(range(int(seen[0]), first + count)) and keys.dtype == np.float32
        assert seen[0] <= (max(0, first - window + 1) if window else 0)
        assert np.array_equal(values, -keys)
    positions = window + SPARE_POSITIONS if window else 1000
    assert [array.shape for array in cache.memory] == [(2, positions, 1, 1)] * 2
    assert not cache.memory[0][0].any()


def test_a_sequence_goes_back_as_far_as_its_windows_are_kept() -> None:
    cache = KeyValueCache(1000)
    cache.begin(600)
    cache.extend("full", rows(0, 600), rows(0, 600), 0)
    cache.extend("window", rows(0, 600), rows(0, 600), 10)
    cache.advance(600)
    least = 600 - SPARE_POSITIONS - 1
    assert [cache.keeps(length) for length in (600, least, least - 1, 20, 0)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    cache.length = least
    assert not cache.keeps(least - 1)
    cache.length = 0
    assert cache.keeps(5)
    assert cache.read_bytes(99) == 2 * 4 * (100 + 10)


def test_no_more_than_the_capacity() -> None:
    cache = KeyValueCache(4)
    with pytest.raises(AssertionError):
        cache.extend("a", rows(0, 5), rows(0, 5), 0)
