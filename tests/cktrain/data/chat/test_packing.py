"""Best-fit decreasing: every row once, none cut, and as few sequences as its bound says."""

from hypothesis import given
from hypothesis import strategies as st

from cktrain.data.chat.packing import best_fit_decreasing


def test_the_best_fit_is_taken():
    assert best_fit_decreasing([5, 7, 3, 4, 1], 10) == [[1, 2], [0, 3, 4]]
    assert best_fit_decreasing([10, 10], 10) == [[0], [1]]
    assert best_fit_decreasing([], 10) == []


@given(st.lists(st.integers(1, 40), max_size=60))
def test_every_row_has_one_place(lengths):
    sequences = best_fit_decreasing(lengths, 40)
    assert sorted(row for sequence in sequences for row in sequence) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in sequence) for sequence in sequences]
    assert all(total <= 40 for total in sums)
    # No two sequences fit in one, or the rows of the later would have been put into the earlier.
    assert len(sums) < 2 or sorted(sums)[0] + sorted(sums)[1] > 40
