"""Blocks whose linears tensor ranks divide: any arrangement of norms, and a factor, gives one rank's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from thread_group import run_ranks

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn.attention import Attention, AttentionShape
from cktrain.nn.branch import Block, Branch
from cktrain.nn.mlp import GeluMLP
from cktrain.nn.norm import LayerNorm, RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.tensor import divide_layers

B, T, C = 2, 4, 8
STYLES = {
    "b.attention.qkv_proj": "column",
    "b.attention.o_proj": "row",
    "b.mlp.c_fc": "column",
    "b.mlp.c_proj": "row",
}


def block(num: Numerics, before: bool, after: bool, alpha: float) -> Block:
    shape = AttentionShape(heads=4, kv_heads=2, head_dim=2)
    options = {"std": 0.4, "output_std": 0.4}
    attention = Attention("b.attention", num, C, shape, None, qkv_bias=True, output_bias=True, **options)
    mlp = GeluMLP("b.mlp", num, C, 12, tanh=True, **options)
    branches = [
        Branch(
            RMSNorm(f"b.{body.name}.before", num, C, 1e-5) if before else None,
            body,
            LayerNorm(f"b.{body.name}.after", num, C, 1e-5) if after else None,
            alpha,
        )
        for body in (attention, mlp)
    ]
    return Block("b", branches)


def compute(group, *arrangement):
    """(out, dx) of this rank's rows, and the gradients of its parameters by name."""
    num = Numerics(cython_kernels.load("reference"), "fp64")
    module = block(num, *arrangement)
    divide_layers(module, STYLES, group, CommTimer(), B * T)
    params = ParamStore(module.params(), num)
    params.initialize(1)
    rng = np.random.default_rng(2)
    share = slice(group.rank * B * T // group.size, (group.rank + 1) * B * T // group.size)
    x, dy = (rng.standard_normal((B * T, C))[share] for _ in range(2))
    out, dx = np.empty_like(x), np.empty_like(x)

    def run(slot) -> None:
        params.begin_sums()
        module.forward(out, x, slot)
        module.backward(dx, dy, x, slot)

    with num.dry():
        (slot,) = plan_slot(B, T, run).allocate()
    run(slot)
    return out, dx, {param.name: param for param in params.params}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True), (False, False)])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_ranks_compute_what_one_does(ranks, before, after, alpha):
    ((out, dx, wanted),) = run_ranks(1, lambda group: compute(group, before, after, alpha))
    found = run_ranks(ranks, lambda group: compute(group, before, after, alpha))
    np.testing.assert_allclose(np.concatenate([f[0] for f in found]), out, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([f[1] for f in found]), dx, atol=1e-12)
    for name, param in wanted.items():
        total = np.zeros(param.global_shape)
        for _, _, mine in found:
            shard = mine[name]
            if shard.shape == shard.global_shape:
                total += shard.grad  # a part on each rank
                continue
            for region in shard.regions:
                rows = slice(region.global_row, region.global_row + region.rows)
                here = shard.grad[region.row : region.row + region.rows]
                if len(shard.shape) == 2:
                    total[rows, region.column : region.column + shard.shape[1]] += here
                else:
                    total[rows] += here
        np.testing.assert_allclose(total, param.grad, atol=1e-12, err_msg=name)
