"""A factor is applied exactly, whatever its size: one product, rounded once."""

import ml_dtypes
import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.nn.numerics import Numerics
from cktrain.nn.scaled import add_scaled, scale


@pytest.mark.parametrize("isa", ["reference", "generic"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("alpha", [1e-8, 0.2, 1.0, 3.0, -700.0])
def test_a_factor_is_one_product(isa, dtype, alpha):
    numerics = Numerics(cython_kernels.load(isa), "fp32")
    y = np.random.default_rng(0).standard_normal((5, 33)).astype(dtype)
    wanted = (np.float32(alpha) * y.astype(np.float32)).astype(dtype)
    out = np.empty_like(y)
    add_scaled(numerics, out, y, None, alpha)
    np.testing.assert_array_equal(out.astype(np.float32), wanted.astype(np.float32))
    scale(numerics, y, y, alpha)
    np.testing.assert_array_equal(y.astype(np.float32), wanted.astype(np.float32))
