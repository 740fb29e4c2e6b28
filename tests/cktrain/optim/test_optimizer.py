"""An optimizer's pieces and state: runs of equal decay, or whole matrices with moments of their own."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.config import OptimizerConfig
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.optimizer import AdamW, Optimizer


class OfMatrices(Optimizer):
    """Keeps one moment of a matrix and two of everything else."""

    moments = ("momentum", "exp_avg", "exp_avg_sq")
    whole_matrices = True

    def moments_of(self, apart: bool) -> tuple[str, ...]:
        return ("momentum",) if apart else ("exp_avg", "exp_avg_sq")


@pytest.fixture
def params() -> ParamStore:
    forward = [
        Param("embed.weight", (5, 7)),
        Param("norm.weight", (7,), decay=False),
        Param("up.weight", (9, 7), optimizer="matrix"),
        Param("down.weight", (7, 9), optimizer="matrix"),
    ]
    return ParamStore(forward, Numerics(cython_kernels.load("reference"), "fp64"))


def test_a_matrix_is_a_piece_of_its_own(params):
    optimizer = OfMatrices(params, OptimizerConfig(lr=0.1, weight_decay=0.2))
    (pieces,) = optimizer._pieces
    assert [None if p.param is None else p.param.name for p in pieces] == [
        "down.weight",
        "up.weight",
        None,
        None,
    ]
    for piece, param in zip(pieces[:2], params.trainable[:2], strict=True):
        assert piece.data.reshape(param.shape).ctypes.data == param.data.ctypes.data
        assert [moment.size for moment in piece.moments] == [param.size]
    assert [p.decay for p in pieces] == [0.2, 0.2, 0.0, 0.2]
    assert [len(p.moments) for p in pieces] == [1, 1, 2, 2]


def test_moments_are_kept_for_what_has_them(params):
    optimizer = OfMatrices(params, OptimizerConfig(lr=0.1), [(0, params.size)])
    up, norm = params["up.weight"], params["norm.weight"]
    optimizer.state_at("momentum", up.start, up.start + up.size)[...] = 3.0
    assert optimizer.state["momentum"].sum() == 3.0 * up.size
    assert optimizer.state["momentum"].size == 2 * 63
    optimizer.state_at("exp_avg", norm.start, norm.start + 7)[...] = 1.0
    with pytest.raises(AssertionError, match="in no span"):
        optimizer.state_at("exp_avg", up.start, up.start + 1)


def test_an_elementwise_optimizer_cuts_at_decay_alone(params):
    optimizer = AdamW(params, OptimizerConfig(lr=0.1, weight_decay=0.2), [(0, 64), (100, params.size)])
    assert [[p.decay for p in pieces] for pieces in optimizer._pieces] == [[0.2], [0.2, 0.0, 0.2]]
    assert {name: array.size for name, array in optimizer.state.items()} == {
        name: 64 + params.size - 100 for name in ("exp_avg", "exp_avg_sq")
    }
    assert np.shares_memory(optimizer.state_at("exp_avg", 100, 110), optimizer.state["exp_avg"])
