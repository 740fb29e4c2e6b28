"""The shuffle is a bijection of any size and a pure function of seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data.permutation import Permutation


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_every_index_comes_once(size, seed, epoch):
    out = Permutation(size, seed, epoch)(np.arange(size))
    assert np.array_equal(np.sort(out), np.arange(size))


@given(st.integers(1, 2**60), st.integers(0, 2**32), st.data())
def test_a_few_positions_of_a_huge_order(size, seed, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), max_size=50, unique=True))
    out = Permutation(size, seed, 3)(np.array(positions, dtype=np.int64))
    assert len(set(out.tolist())) == len(positions)
    assert all(0 <= index < size for index in out.tolist())
    one_by_one = [int(Permutation(size, seed, 3)(position)[0]) for position in positions]
    assert one_by_one == out.tolist()


def test_the_order_depends_on_seed_and_epoch():
    orders = {tuple(Permutation(100, seed, epoch)(np.arange(100))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_of_a_seed_is_frozen():
    # A change here would break the resuming of every run that was started before it.
    assert Permutation(10, 1234, 0)(np.arange(10)).tolist() == [7, 8, 4, 2, 5, 9, 6, 3, 0, 1]


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_places_are_uniform(size):
    # Where index 0 goes over 4000 epochs, in 7 bins. Chi-square with 6 degrees of freedom: 27.9 is p = 1e-4.
    places = np.array([Permutation(size, 5, epoch)(0)[0] for epoch in range(4000)])
    edges = np.linspace(0, size, 8).astype(int)
    observed = np.histogram(places, edges)[0]
    expected = np.diff(edges) / size * len(places)
    assert ((observed - expected) ** 2 / expected).sum() < 27.9


def test_neighbours_are_torn_apart():
    out = Permutation(10_000, 0, 0)(np.arange(10_000))
    # The correlation of a random order with the identity has standard deviation 0.01.
    assert abs(np.corrcoef(out, np.arange(10_000))[0, 1]) < 0.04
    assert np.count_nonzero(np.diff(out) == 1) < 10  # 1 is expected
