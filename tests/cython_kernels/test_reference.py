"""The reference as a kernel set: bf16, values at the edges, errors at the door."""

import math

import numpy as np
import pytest
from cases import CASES, Case, convert
from ml_dtypes import bfloat16

from cktrain import cython_kernels

KERNELS = cython_kernels.load("reference")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bf16_is_fp32_rounded_once(case: Case) -> None:
    """The forward in bf16 is that of the same numbers in fp32, rounded; the backward follows within bf16."""
    for seed, shape in enumerate(case.examples):
        inputs = case.draw(np.random.default_rng(seed), shape, bfloat16)
        wide = convert(inputs, np.float32)
        narrow_forward, wide_forward = case.forward(KERNELS, inputs), case.forward(KERNELS, wide)
        for name, got in narrow_forward.items():
            assert np.array_equal(got, wide_forward[name].astype(got.dtype)), name
        narrow, exact = case.run(KERNELS, inputs), case.run(KERNELS, convert(inputs, np.float64))
        for name, got in narrow.items():
            assert case.error(name, got, exact[name], inputs) <= case.tolerance(name, bfloat16), name


def test_erf_is_exact_to_the_last_bits() -> None:
    x = np.concatenate([np.linspace(-7.0, 7.0, 10_001), [1e-300, -1e-9, 0.0, 40.0, np.inf, -np.inf]])
    y = np.empty_like(x)
    with np.errstate(invalid="ignore"):  # 0 · inf in the last two
        KERNELS.gelu_forward(y, x * math.sqrt(2.0), False)
    finite = np.isfinite(x) & (x != 0.0)
    erf = 2.0 * y[finite] / (x[finite] * math.sqrt(2.0)) - 1.0
    # 1 + erf loses the relative accuracy of a small erf, so that two roundings of 1 are left.
    assert np.abs(erf - [math.erf(value) for value in x[finite]]).max() < 1e-15


def test_gelu_of_nan_is_nan() -> None:
    for tanh in (True, False):
        y = np.empty(2)
        KERNELS.gelu_forward(y, np.array([np.nan, 1.0]), tanh)
        assert np.isnan(y[0]) and 0.84 < y[1] < 0.842


def test_swiglu_far_from_zero_stays_finite() -> None:
    gate_up = np.array([[-1e4, 1e4, 2.0, 2.0]], np.float32)
    y, dgate_up = np.empty((1, 2), np.float32), np.empty((1, 4), np.float32)
    KERNELS.swiglu_forward(y, gate_up)
    KERNELS.swiglu_backward(dgate_up, np.ones((1, 2), np.float32), gate_up)
    assert y.tolist() == [[0.0, 2e4]]
    assert dgate_up.tolist() == [[0.0, 2.0, 0.0, 1e4]]


def test_cross_entropy_of_large_logits_stays_finite() -> None:
    logits = np.array([[1e4, -1e4, 1e4]], np.float32)
    row_max, row_sum, target_logit = (np.empty(1, np.float32) for _ in range(3))
    grad = np.empty_like(logits)
    targets = np.array([2], np.int32)
    KERNELS.cross_entropy_forward(row_max, row_sum, target_logit, logits, targets)
    assert (row_max[0], row_sum[0], target_logit[0]) == (1e4, 2.0, 1e4)
    KERNELS.cross_entropy_backward(grad, logits, row_max + np.log(row_sum), targets)
    assert np.abs(grad - [[0.5, 0.0, -0.5]]).max() < 1e-3  # lse near 1e4 has steps of 1e-3 in fp32


def test_embedding_backward_adds_in_the_order_of_the_rows() -> None:
    """1e8 + 1 - 1e8 is 0 in fp32 in this order and 1 in any that adds the large ones first."""
    dtable = np.zeros((2, 1), np.float32)
    dy = np.array([[1e8], [1.0], [-1e8]], np.float32)
    KERNELS.embedding_backward(dtable, dy, np.array([1, 1, 1], np.int32))
    assert dtable.tolist() == [[0.0], [0.0]]
    KERNELS.embedding_backward(dtable, dy[[0, 2, 1]], np.array([1, 1, 1], np.int32))
    assert dtable.tolist() == [[0.0], [1.0]]


def test_sum_of_squares_shows_inf_and_nan() -> None:
    assert KERNELS.sum_of_squares(np.array([1.0, np.inf], np.float32)) == math.inf
    assert math.isnan(KERNELS.sum_of_squares(np.array([1.0, np.nan, np.inf], np.float32)))
    assert KERNELS.sum_of_squares(np.full(3, 1e30, np.float32)) == pytest.approx(3e60, rel=1e-6)


def test_set_num_threads_is_remembered_and_positive() -> None:
    before = KERNELS.num_threads()
    KERNELS.set_num_threads(3)
    assert KERNELS.num_threads() == 3
    KERNELS.set_num_threads(before)
    with pytest.raises(ValueError, match="n is 0"):
        KERNELS.set_num_threads(0)


def _f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


IDS = np.zeros(4, np.int32)
BAD_CALLS = {
    "shape": (lambda k: k.linear_forward(_f32(4, 5), _f32(4, 3), _f32(5, 2)), r"w .*\(5, 2\).*\(5, 3\)"),
    "dtype": (
        lambda k: k.linear_forward(_f32(4, 5), _f32(4, 3), np.zeros((5, 3))),
        "w has type float64, float32",
    ),
    "integer": (lambda k: k.sum_of_squares(IDS), "int32"),
    "rank": (lambda k: k.matmul(_f32(2, 2), _f32(2), _f32(2, 2)), "a has 1 dimensions"),
    "id too large": (
        lambda k: k.embedding_forward(_f32(4, 2), IDS + np.int32(7), _f32(7, 2)),
        r"from 7 to 7, \[0, 7\)",
    ),
    "negative id": (
        lambda k: k.embedding_backward(_f32(7, 2), _f32(4, 2), IDS - np.int32(1)),
        "from -1 to -1",
    ),
    "ids of int64": (
        lambda k: k.embedding_forward(_f32(4, 2), IDS.astype(np.int64), _f32(7, 2)),
        "int64, int32",
    ),
    "position": (
        lambda k: k.rope_forward(_f32(4, 1, 2), _f32(4, 1, 2), _f32(3, 1), _f32(3, 1), IDS + np.int32(3)),
        "positions holds values from 3 to 3",
    ),
    "odd head size": (
        lambda k: k.rope_forward(_f32(4, 1, 3), _f32(4, 1, 3), _f32(3, 1), _f32(3, 1), IDS),
        "head size of 3",
    ),
    "heads": (
        lambda k: k.attention_forward(
            _f32(1, 2, 3, 4), _f32(1, 3, 2), _f32(1, 2, 3, 4), _f32(1, 2, 2, 4), _f32(1, 2, 2, 4), 1.0
        ),
        "q has 3 heads, a multiple of the 2",
    ),
    "more queries than keys": (
        lambda k: k.attention_forward(
            _f32(1, 2, 1, 4), _f32(1, 1, 2), _f32(1, 2, 1, 4), _f32(1, 1, 1, 4), _f32(1, 1, 1, 4), 1.0
        ),
        "2 queries for 1 keys",
    ),
    "first beyond the keys": (
        lambda k: k.attention_forward(
            *(_f32(1, 2, 1, 4), _f32(1, 1, 2), _f32(1, 2, 1, 4), _f32(1, 2, 1, 4), _f32(1, 2, 1, 4), 1.0),
            first=np.array([[1, 3]], np.int32),
        ),
        "first has an entry outside",
    ),
    "odd gate_up": (lambda k: k.swiglu_forward(_f32(2, 1), _f32(2, 3)), "3 columns"),
    "step 0": (
        lambda k: k.adamw_step(_f32(1), _f32(1), _f32(1), _f32(1), 0.1, 0.9, 0.9, 1e-8, 0.0, 0, 1.0),
        "step is 0",
    ),
    "cast": (lambda k: k.cast(_f32(2), _f32(3)), r"\(2,\), \(3,\)"),
}


@pytest.mark.parametrize(("call", "message"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_bad_call_is_refused_with_both_numbers(call, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(KERNELS)
    assert str(caught.value).startswith("[kernels.")
