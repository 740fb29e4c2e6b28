"""Newton-Schulz iterations: singular values near one, the polynomial's own values, the cost."""

from __future__ import annotations

import numpy as np
import pytest
from ml_dtypes import bfloat16

from cktrain import cython_kernels
from cktrain.cython_kernels.ops import OPS
from cktrain.nn.numerics import Numerics
from cktrain.optim.newton_schulz import A, B, C, NewtonSchulz, newton_schulz_flops

SHAPES = [(1, 1), (1, 9), (9, 1), (24, 24), (24, 67), (67, 24)]


def orthogonalised(update: np.ndarray, steps: int, precision: str, isa: str = "reference") -> np.ndarray:
    numerics = Numerics(cython_kernels.load(isa), precision)
    work = update.astype(numerics.master_dtype)
    out = np.zeros_like(work)
    NewtonSchulz(numerics, [(30, 70), (70, 30)], steps).add(out, work, 1.0)
    return out


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_go_by_the_polynomial(shape: tuple[int, int], scale: float) -> None:
    """The iteration changes the singular values alone: s <- a s + b s³ + c s⁵."""
    update = scale * np.random.default_rng(0).standard_normal(shape)
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    s = s / np.linalg.norm(update)
    for _ in range(5):
        s = A * s + B * s**3 + C * s**5
    np.testing.assert_allclose(orthogonalised(update, 5, "fp64"), u * s @ vt, atol=1e-12)


@pytest.mark.parametrize("isa", cython_kernels.available())
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kernel_set_gives_the_same(shape: tuple[int, int], isa: str) -> None:
    update = np.random.default_rng(1).standard_normal(shape)
    want = orthogonalised(update, 5, "fp64")
    assert np.abs(orthogonalised(update, 5, "fp32", isa) - want).max() < 1e-5
    # Five steps of products rounded to 2^-9, whose singular values stay within the polynomial's 0.7 to 1.2.
    assert np.abs(orthogonalised(update, 5, "bf16", isa) - want).max() < 0.05


def test_the_result_is_added_with_its_scale() -> None:
    numerics = Numerics(cython_kernels.load("reference"), "fp64")
    update = np.random.default_rng(2).standard_normal((3, 5))
    want = orthogonalised(update, 2, "fp64")
    out = np.ones((3, 5))
    NewtonSchulz(numerics, [(3, 5)], 2).add(out, update.copy(), -0.25)
    np.testing.assert_allclose(out, 1.0 - 0.25 * want, atol=1e-14)


def test_an_update_of_zeros_changes_nothing() -> None:
    assert not orthogonalised(np.zeros((4, 6)), 5, "fp64").any()


def test_floating_point_operations_are_those_of_two_half_products_and_a_whole_one() -> None:
    class Counted:
        def __init__(self) -> None:
            self.kernels, self.flops = cython_kernels.load("reference"), 0

        def __getattr__(self, name: str):
            def call(*args, **kwargs):
                self.flops += OPS[name].cost(args, kwargs).flops
                return getattr(self.kernels, name)(*args, **kwargs)

            return call

    for shape in ((10, 30), (30, 10)):
        kernels = Counted()
        update = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        numerics = Numerics(kernels, "bf16")
        NewtonSchulz(numerics, [shape], 5).add(np.zeros_like(update), update, 1.0)
        assert kernels.flops == newton_schulz_flops(*shape, 5) == 5 * (3 * 10 * 300 + 10**3)
        assert numerics.compute_dtype == bfloat16
