"""The canonical order, bit by bit, and the accumulation of bf16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cktrain.comm.reduction import BFLOAT16, reduce_in_rank_order

LENGTHS = [0, 1, 32_767, 32_768, 32_769, 100_003]  # around the block


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_ascending(length, size):
    contributions = [np.random.default_rng(r).standard_normal(length).astype(np.float32) for r in range(size)]
    expected = contributions[0].copy()
    for x in contributions[1:]:
        expected += x
    out = np.empty(length, np.float32)
    reduce_in_rank_order(out, contributions, "sum")
    assert out.tobytes() == expected.tobytes()
    if length > 1 and size > 2:  # the order shows in the bits, or this test proves nothing
        reduce_in_rank_order(out, contributions[::-1], "sum")
        assert out.tobytes() != expected.tobytes()


@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_a_world_of_one_has_its_own(op):
    out = np.zeros(3, np.float32)
    reduce_in_rank_order(out, [np.arange(3, dtype=np.float32)], op)
    assert out.tolist() == [0, 1, 2]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.int64])
def test_output_may_be_a_contribution(which, dtype):
    contributions = [np.arange(70_000).astype(dtype) % 100 + r for r in range(3)]
    expected = np.empty(70_000, dtype)
    reduce_in_rank_order(expected, contributions, "sum")
    reduce_in_rank_order(contributions[which], contributions, "sum")
    assert contributions[which].tobytes() == expected.tobytes()


def test_bf16_is_rounded_once():
    """256 + 1 + 1: each addition alone rounds back to 256 in bf16 (8 bits), the fp32 sum 258 does not."""
    contributions = [np.array([x], BFLOAT16) for x in (256, 1, 1)]
    out = np.empty(1, BFLOAT16)
    reduce_in_rank_order(out, contributions, "sum")
    assert float(out[0]) == 258


def test_bf16_rounds_to_nearest_even():
    out = np.empty(2, BFLOAT16)
    reduce_in_rank_order(out, [np.array([256, 258], BFLOAT16), np.array([1, 1], BFLOAT16)], "sum")
    assert [float(x) for x in out] == [256, 260]  # 257 and 259 lie halfway


def test_bf16_mean_is_scaled_before_rounding():
    """The sum overflows bf16's neighbourhood of the values, the mean does not lose a bit."""
    x = np.array([3.0e38], BFLOAT16)
    out = np.empty(1, BFLOAT16)
    reduce_in_rank_order(out, [np.array([1.0], BFLOAT16), np.array([1.0078125], BFLOAT16)], "mean")
    assert out[0] == np.array([1.00390625], np.float32).astype(ml_dtypes.bfloat16)[0]
    reduce_in_rank_order(out, [x, -x], "mean")
    assert out[0] == 0


@pytest.mark.parametrize("op", ["max", "min"])
def test_nan_wins_from_any_rank(op):
    for position in range(3):
        contributions = [np.array([float(r)]) for r in range(3)]
        contributions[position][:] = np.nan
        out = np.empty(1)
        reduce_in_rank_order(out, contributions, op)
        assert np.isnan(out[0])
