"""The dealing of examples to parts: exact shares within the stated bound, a pure function, stages one after the other."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.data.mixture import Mixture, Stage

WEIGHT = st.floats(1e-3, 1e3, allow_nan=False)
WEIGHTS = st.lists(WEIGHT, min_size=1, max_size=6)


def stages_of(draw_weights, ends):
    return Mixture(
        [Stage(tuple(weights), end) for weights, end in zip(draw_weights, [*ends, None], strict=True)]
    )


@given(WEIGHTS, st.integers(0, 3000))
def test_a_part_is_off_its_share_by_at_most_half_an_example_for_each_other_part(weights, examples):
    counts = Mixture([Stage(tuple(weights))]).counts(examples)
    assert sum(counts) == examples
    total = sum(map(Fraction, map(repr, weights)))
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - Fraction(repr(weight)) / total * examples) <= Fraction(len(weights) - 1, 2)


@given(WEIGHTS, st.integers(2**40, 2**62))
def test_shares_hold_as_far_as_one_can_count(weights, examples):
    counts = Mixture([Stage(tuple(weights))]).counts(examples)
    total = sum(map(Fraction, map(repr, weights)))
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - Fraction(repr(weight)) / total * examples) <= Fraction(len(weights) - 1, 2)


@st.composite
def mixtures(draw):
    parts = draw(st.integers(1, 4))
    ends = sorted(draw(st.sets(st.integers(1, 200), max_size=3)))
    weights = [
        draw(st.lists(st.one_of(st.just(0.0), WEIGHT), min_size=parts, max_size=parts).filter(any))
        for _ in range(len(ends) + 1)
    ]
    return stages_of(weights, ends)


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(0, 300), st.integers(1, 60))
def test_places_are_those_that_counting_one_by_one_gives(mixture, first, count):
    seen = [0] * mixture.parts
    straight = []
    for number in range(first + count):
        ((part, index),) = mixture.places(number, 1)
        assert index == seen[part]  # each part's own examples come in order, none twice and none left out
        seen[part] += 1
        straight.append((part, index))
    assert mixture.places(first, count) == straight[first:]
    assert mixture.counts(first + count) == seen


@settings(max_examples=40, deadline=None)
@given(mixtures())
def test_a_stage_reads_no_part_that_it_does_not_name(mixture):
    begin = 0
    for stage in mixture.stages:
        end = stage.until if stage.until is not None else begin + 100
        for part, _ in mixture.places(begin, end - begin):
            assert stage.weights[part] > 0
        begin = end


def test_a_tenth_is_a_tenth():
    mixture = Mixture([Stage((0.1, 0.2, 0.7))])
    assert mixture.counts(10**15) == [10**14, 2 * 10**14, 7 * 10**14]
    assert mixture.counts(10) == [1, 2, 7]
    assert [part for part, _ in Mixture([Stage((1.0, 1.0))]).places(0, 6)] in ([0, 1] * 3, [1, 0] * 3)


def test_weights_are_shares_whatever_their_sum():
    one, other = (Mixture([Stage(weights)]) for weights in ((0.25, 0.75), (1.0, 3.0)))
    assert one.places(0, 500) == other.places(0, 500)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_alternate_within_short_stretches(parts):
    mixture = Mixture([Stage((1.0,) * parts)])
    for first in range(0, 200, 7):
        found = [part for part, _ in mixture.places(first, 2 * parts)]
        assert all(found.count(part) >= 1 for part in range(parts)), (first, found)


def test_stages_by_hand():
    mixture = stages_of([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [3, 5])
    assert mixture.places(0, 5) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert mixture.counts(4) == [3, 1]
    assert sorted(mixture.places(5, 2)) == [(0, 3), (1, 2)]
    assert math.isclose(sum(mixture.counts(1005)), 1005)
