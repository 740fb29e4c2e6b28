"""The vector functions of csrc/vmath.h against fp64, within the bounds that the header states."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.cython_kernels import _runtime


@pytest.fixture(params=[isa for isa in cython_kernels.available() if isa != "reference"], autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each compiled set in turn."""
    yield cython_kernels.load(request.param).isa
    cython_kernels.load()


def exp(x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    _runtime.vector_exp(y, x)
    return y


def normal_cdf(x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    _runtime.vector_normal_cdf(y, x)
    return y


def test_exp_relative_error() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-87.0, 88.7, 2_000_000), rng.normal(0, 1e-3, 100_000), [0.0, -0.0]])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(exp(x) - exact) / exact
    assert error.max() <= 2e-7


def test_exp_at_the_ends() -> None:
    below = np.linspace(-200.0, -87.0, 5001, dtype=np.float32)
    # gradual underflow: half of the smallest subnormal, and the relative error where the result is normal
    assert np.all(np.abs(exp(below) - np.exp(below.astype(np.float64))) <= 1.5e-45 + 2e-7 * np.exp(below))
    special = np.array([-np.inf, -1e30, 89.0, 1e30, np.inf, np.nan, -np.nan], np.float32)
    got = exp(special)
    assert got[:5].tolist() == [0.0, 0.0, np.inf, np.inf, np.inf]
    assert np.isnan(got[5:]).all()


def test_normal_cdf_absolute_error() -> None:
    x = np.linspace(-40.0, 40.0, 400_001, dtype=np.float32)
    exact = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x.astype(np.float64)])
    got = normal_cdf(x)
    assert np.abs(got - exact).max() <= 3e-7
    assert got.min() >= 0.0 and got.max() <= 1.0


def test_normal_cdf_at_the_ends() -> None:
    got = normal_cdf(np.array([-np.inf, -1e30, 0.0, 1e30, np.inf, np.nan], np.float32))
    assert got[[0, 1, 3, 4]].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert abs(got[2] - 0.5) <= 3e-7
    assert np.isnan(got[5])


@pytest.mark.parametrize("n", range(0, 40))
def test_tails_are_computed_as_the_rest_and_nothing_beyond(n: int) -> None:
    whole = np.linspace(-3.0, 3.0, 64, dtype=np.float32)
    y = np.full(64, np.nan, np.float32)
    _runtime.vector_exp(y[:n], whole[:n])
    assert np.array_equal(y[:n], exp(whole)[:n])
    assert np.isnan(y[n:]).all()
