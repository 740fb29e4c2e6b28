"""Muon: matrices part by part with one moment, everything else as AdamW; what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.config import OptimizerConfig
from cktrain.memory.param import Param, ShardRegion
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.muon import MOMENTUM, Muon
from cktrain.optim.newton_schulz import NewtonSchulz, newton_schulz_flops
from cktrain.optim.optimizer import AdamW

NUMERICS = Numerics(cython_kernels.load("reference"), "fp64")
CONFIG = OptimizerConfig(name="muon", lr=0.1, muon_lr=0.3, weight_decay=0.2)


def stepped(
    params: list[Param], config: OptimizerConfig = CONFIG, kind: type = Muon, lr: float = 0.05
) -> ParamStore:
    """The store after two steps on gradients that depend on the elements' place in the list alone."""
    store = ParamStore(params, NUMERICS)
    rng = np.random.default_rng(3)
    for param in params:
        param.data[...] = rng.standard_normal(param.shape)
    optimizer = kind(store, config)
    for step in (1, 2):
        for param in params:
            param.grad[...] = rng.standard_normal(param.shape)
        optimizer.step(lr, 0.5, step)
    return store


def test_fused_projections_are_updated_as_the_matrices_that_they_are() -> None:
    fused = stepped([Param("qkv", (12, 6), optimizer="matrix", parts=(8, 2, 2))])
    store = ParamStore(
        [Param(name, (rows, 6), optimizer="matrix") for name, rows in (("q", 8), ("k", 2), ("v", 2))],
        NUMERICS,
    )
    rng = np.random.default_rng(3)
    whole = rng.standard_normal((12, 6))
    parts = {"q": slice(0, 8), "k": slice(8, 10), "v": slice(10, 12)}
    for name, rows in parts.items():
        store[name].data[...] = whole[rows]
    optimizer = Muon(store, CONFIG)
    for step in (1, 2):
        grad = rng.standard_normal((12, 6))
        for name, rows in parts.items():
            store[name].grad[...] = grad[rows]
        optimizer.step(0.05, 0.5, step)
    for name, rows in parts.items():
        np.testing.assert_allclose(fused["qkv"].data[rows], store[name].data, rtol=0, atol=1e-14)


def test_what_is_no_matrix_is_adamws() -> None:
    def params() -> list[Param]:
        return [Param("embedding", (7, 6)), Param("norm", (6,), decay=False)]

    ours, theirs = stepped(params()), stepped(params(), kind=AdamW)
    np.testing.assert_array_equal(ours.data, theirs.data)


@pytest.mark.parametrize(
    "adjust_lr, factor", [("original", math.sqrt(12 / 6)), ("match_rms_adamw", 0.2 * math.sqrt(12))]
)
def test_a_first_step_is_the_orthogonalised_gradient(adjust_lr: str, factor: float) -> None:
    """From a buffer of zeros the update has the gradient's direction, and the iteration knows no scale."""
    param = Param("w", (12, 6), optimizer="matrix")
    store = ParamStore([param], NUMERICS)
    rng = np.random.default_rng(0)
    param.data[...] = start = rng.standard_normal((12, 6))
    param.grad[...] = grad = rng.standard_normal((12, 6))
    Muon(store, CONFIG.model_copy(update={"adjust_lr": adjust_lr})).step(0.05, 0.5, 1)
    direction = np.zeros((12, 6))
    NewtonSchulz(NUMERICS, [(12, 6)], 5).add(direction, grad.copy(), 1.0)
    lr = 0.05 * 0.3 / 0.1  # muon_lr follows the schedule of lr
    np.testing.assert_allclose(
        param.data, start * (1 - lr * 0.2) - lr * factor * direction, rtol=0, atol=1e-13
    )


def test_the_buffer_is_a_moving_average_of_gradients() -> None:
    param = Param("w", (4, 6), optimizer="matrix")
    store = ParamStore([param], NUMERICS)
    optimizer = Muon(store, CONFIG)
    want = np.zeros(24)
    for step in (1, 2, 3):
        param.grad[...] = np.random.default_rng(step).standard_normal((4, 6))
        want += (1 - MOMENTUM) * (0.25 * param.grad.reshape(-1) - want)
        optimizer.step(0.1, 0.25, step)
    assert list(optimizer.state) == ["momentum_buffer", "exp_avg", "exp_avg_sq"]
    np.testing.assert_allclose(optimizer.state["momentum_buffer"], want, rtol=0, atol=1e-15)
    assert optimizer.state["exp_avg"].size == 0


def test_flops_are_those_of_the_parts() -> None:
    store = ParamStore(
        [Param("qkv", (12, 6), optimizer="matrix", parts=(8, 2, 2)), Param("e", (7, 6))], NUMERICS
    )
    want = newton_schulz_flops(8, 6, 3) + 2 * newton_schulz_flops(2, 6, 3)
    assert Muon(store, CONFIG.model_copy(update={"ns_steps": 3})).flops == want
    assert AdamW(store, CONFIG).flops == 0


def test_a_part_of_a_matrix_is_refused() -> None:
    param = Param("mlp.down", (4, 6), optimizer="matrix")
    param.shard((2, 6), (ShardRegion(0, 2, 2),))
    with pytest.raises(ValueError, match=r"holds \(2, 6\) of mlp\.down \(4, 6\). Set parallel.tensor: 1"):
        Muon(ParamStore([param], NUMERICS), CONFIG)


def test_a_rate_without_a_schedule_to_follow_is_refused() -> None:
    store = ParamStore([Param("w", (4, 6), optimizer="matrix")], NUMERICS)
    with pytest.raises(ValueError, match=r"muon_lr is 0\.3 and lr 0"):
        Muon(store, CONFIG.model_copy(update={"lr": 0.0}))
