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


def apply(name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    _runtime.vector(name, y, x)
    return y


def exp(x: np.ndarray) -> np.ndarray:
    return apply("exp", x)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return apply("normal_cdf", x)


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


def test_tanh_relative_error() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-12.0, 12.0, 2_000_000), rng.normal(0.0, 1e-3, 100_000), [0.624, 0.626]])
    x = x.astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    got = apply("tanh", x)
    assert (np.abs(got - exact) <= 4e-7 * np.abs(exact)).all()
    assert apply("tanh", np.array([0.0, 1e-30, 30.0, -np.inf], np.float32)).tolist() == [
        0.0,
        np.float32(1e-30),
        1,
        -1,
    ]
    assert np.isnan(apply("tanh", np.array([np.nan], np.float32))).all()


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


def every_exponent() -> np.ndarray:
    """Both signs, every exponent of fp32 with 200 mantissas each: subnormals, infinities and NaN included."""
    mantissas = np.linspace(0, 2**23 - 1, 200, dtype=np.uint32)
    bits = (np.arange(512, dtype=np.uint32)[:, None] << 23) | mantissas
    return bits.reshape(-1).view(np.float32)


@pytest.mark.parametrize(
    ("name", "bound"), [("exp2", 2e-7), ("exp2_degree4", 4e-6), ("exp2_degree3", 1.1e-4)]
)
def test_exp2_relative_error(name: str, bound: float) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-126.0, 127.0, 2_000_000), rng.normal(0, 1e-3, 100_000), np.arange(-126, 128)]
    )
    everywhere = every_exponent()
    x = np.concatenate([x.astype(np.float32), everywhere[np.abs(everywhere) <= 126.0]])
    exact = np.exp2(x.astype(np.float64))
    assert (np.abs(apply(name, x) - exact) / exact).max() <= bound


@pytest.mark.parametrize("name", ["exp2", "exp2_degree4", "exp2_degree3"])
def test_exp2_at_the_ends(name: str) -> None:
    x = every_exponent()
    below = x[x < -126.0]  # -Inf included
    got = apply(name, below)
    assert got.min() >= 0.0 and got.max() <= 1.0002 * 2.0**-126
    assert np.isnan(apply(name, x[np.isnan(x)])).all()


@pytest.mark.parametrize(("name", "bound"), [("sigmoid", 3e-7), ("sigmoid_degree3", 1e-4)])
def test_sigmoid_absolute_error(name: str, bound: float) -> None:
    x = np.concatenate([np.linspace(-130.0, 130.0, 1_000_001, dtype=np.float32), every_exponent()])
    got = apply(name, x)
    nan = np.isnan(x)
    with np.errstate(over="ignore"):
        exact = 1.0 / (1.0 + np.exp(-x[~nan].astype(np.float64)))
    assert np.abs(got[~nan] - exact).max() <= bound
    assert np.isnan(got[nan]).all()


def test_normal_cdf_of_degree_3() -> None:
    x = np.linspace(-12.0, 12.0, 100_001, dtype=np.float32)
    exact = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in x.astype(np.float64)])
    assert np.abs(apply("normal_cdf_degree3", x) - exact).max() <= 1e-4
    everywhere = every_exponent()
    got, nan = apply("normal_cdf_degree3", everywhere), np.isnan(everywhere)
    assert np.isnan(got[nan]).all() and got[~nan].min() >= 0.0 and got[~nan].max() <= 1.0


@pytest.mark.parametrize("n", range(0, 40))
def test_tails_are_computed_as_the_rest_and_nothing_beyond(n: int) -> None:
    whole = np.linspace(-3.0, 3.0, 64, dtype=np.float32)
    y = np.full(64, np.nan, np.float32)
    _runtime.vector("exp", y[:n], whole[:n])
    assert np.array_equal(y[:n], exp(whole)[:n])
    assert np.isnan(y[n:]).all()
