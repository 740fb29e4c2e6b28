"""LoRA and DoRA in the adapter slot: ranks that divide data or tensors compute one process's losses and adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from lora import add_lora
from thread_group import run_ranks

from cktrain import cython_kernels
from cktrain.comm.group import Group
from cktrain.data.loader import Batch
from cktrain.data.sequence_keys import sequence_keys
from cktrain.models.build import build_model
from cktrain.nn.adapters.dora import DoRA
from cktrain.nn.adapters.lora import LoRA
from cktrain.nn.linear import Linear
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.ranks import divide_world
from cktrain.parallel.step_reduction import reduce_step

STEPS = 4
FAMILIES = {
    "llama": {"model.attention_bias": True},
    "llama, one key/value head": {"model.num_key_value_heads": 1},
    "gpt2": {"model.family": "gpt2"},
}


def train(
    config: Any, world: Group, mesh: Mesh, frozen: bool, kind: Callable[..., LoRA]
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of the steps, and what this rank has of the adapters after them."""
    model = build_model(config.model, Numerics(cython_kernels.load("reference"), "fp64"), 16)
    for module in model.modules():
        if isinstance(module, Linear) and module.name != "lm_head":
            add_lora(module, kind=kind)
    for param in model.params():
        param.tag(trainable=not frozen or param.spec.adapter)
    ranks = divide_world(world, mesh)
    shard = ModelShard(config, model, ranks)
    shard.params.initialize(5)
    start = {param.name: param.data.copy() for param in shard.params.trainable}
    optimizer = OPTIMIZERS["sgd"](shard.params, config.optimizer, shard.data.update_spans)
    stage, losses = shard.stage, []
    rng = np.random.default_rng(6)
    for step in range(1, STEPS + 1):
        ids = rng.integers(0, 61, (4, 2, 17)).astype(np.int32)
        mine = ids.reshape(mesh.data, -1, 2, 17)[ranks.data.rank]
        keys = sequence_keys(3, 8 * step, 8).reshape(mesh.data, -1, 2)[ranks.data.rank]
        batches = [
            Batch(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:]), keys=k)
            for a, k in zip(mine, keys, strict=True)
        ]
        shard.data.begin()
        sums = stage.train(batches, shard.schedule[0], shard.data.end_micro_batch)
        shard.data.finish()
        shard.partial.sum()
        total = reduce_step(ranks, sums)
        losses.append(total.loss_sum / total.tokens)
        shard.data.update(optimizer, 0.3, 1.0 / total.tokens, step)
    assert all(np.abs(param.data - start[param.name]).max() > 1e-4 for param in shard.params.trainable)
    adapters = {param.name: param for param in shard.params.params if param.spec.adapter}
    return losses, {name: whole(param, ranks.tensor) for name, param in adapters.items()}


def whole(param: Any, tensor: Group) -> np.ndarray:
    """The global parameter, from all tensor ranks' regions (collective)."""
    found = np.full(param.global_shape, np.nan)
    for shape, regions, data in tensor.show((param.shape, param.regions, param.data.copy())):
        for r in regions:
            columns = (slice(r.column, r.column + shape[1]),) if len(shape) == 2 else ()
            found[(slice(r.global_row, r.global_row + r.rows), *columns)] = data[r.row : r.row + r.rows]
    return found


@pytest.mark.parametrize("mesh", [Mesh(data=2), Mesh(tensor=2), Mesh(data=2, tensor=2)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen", [True, False], ids=["base frozen", "all trained"])
@pytest.mark.parametrize(
    "kind",
    [LoRA, DoRA, partial(LoRA, dropout=0.3), partial(DoRA, dropout=0.3)],
    ids=["lora", "dora", "lora, dropout", "dora, dropout"],
)
def test_ranks_compute_the_losses_of_one(tiny, mesh, family, frozen, kind):
    config = tiny(**FAMILIES[family])
    ((losses, adapters),) = run_ranks(1, lambda world: train(config, world, Mesh(), frozen, kind))
    for found, mine in run_ranks(mesh.world, lambda world: train(config, world, mesh, frozen, kind)):
        np.testing.assert_allclose(found, losses, rtol=1e-11)
        assert mine.keys() == adapters.keys() and mine
        for name, wanted in adapters.items():
            np.testing.assert_allclose(mine[name], wanted, rtol=1e-9, atol=1e-12, err_msg=name)
