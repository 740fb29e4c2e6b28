"""AdamW with 8-bit moments beside bitsandbytes' own, on its CPU functions: the map, and twenty steps."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.config import OptimizerConfig
from cktrain.cython_kernels.dynamic_map import SIGNED, UNSIGNED
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.adamw_8bit import AdamW8bit

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.judge


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_bitsandbytes(signed: bool) -> None:
    """To a rounding of fp32, in which bitsandbytes computes its map."""
    want = bitsandbytes.functional.create_dynamic_map(signed=signed).numpy()
    np.testing.assert_allclose((SIGNED if signed else UNSIGNED).values, want, rtol=2e-7, atol=0)


@pytest.mark.parametrize("isa", ["reference", ""])
def test_twenty_steps_are_bitsandbytes(isa: str) -> None:
    """The first step, from no moments, is the same to a rounding. After that bitsandbytes loses 0.7 % of the largest numbers
    that are negative, and small second moments become 0: both stay as near to each other as they are to AdamW with
    moments of 32 bits, from which ours is no farther but for 5 % of chance."""
    numerics = Numerics(cython_kernels.load(isa or None), "fp32")
    params = ParamStore([Param("w", (90, 100))], numerics)
    params.initialize(0)
    (param,) = params.trainable
    start = param.data.copy()
    optimizer = AdamW8bit(params, OptimizerConfig(name="adamw_8bit", weight_decay=0.1, eps=1e-6))
    settings = (1e-2, (0.9, 0.95), 1e-6, 0.1)
    twin, exact = torch.from_numpy(start.copy()), torch.from_numpy(start.copy())
    judge, unrounded = bitsandbytes.optim.AdamW8bit([twin], *settings), torch.optim.AdamW([exact], *settings)
    rng = np.random.default_rng(0)
    drift = rng.standard_normal(param.shape)
    for step in range(1, 21):
        param.grad[...] = 4.0 * (drift + rng.standard_normal(param.shape))
        twin.grad = torch.from_numpy(param.grad * 0.25)
        exact.grad = twin.grad.clone()
        judge.step()
        unrounded.step()
        optimizer.step(1e-2, 0.25, step)
        assert judge.state[twin]["state1"].dtype == torch.uint8
        if step == 1:
            np.testing.assert_allclose(param.data - start, twin.numpy() - start, rtol=0, atol=1e-7)
    way = np.linalg.norm(exact.numpy() - start)
    apart, ours, theirs = (
        np.linalg.norm(a - b) / way
        for a, b in ((param.data, twin.numpy()), (param.data, exact.numpy()), (twin.numpy(), exact.numpy()))
    )
    assert ours <= 1.05 * theirs < 0.03
    assert apart <= theirs
