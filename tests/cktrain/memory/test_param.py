"""A parameter: its spec, its shard, and when a contribution to its gradient overwrites or adds."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.memory.param import Param, ShardRegion
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics


@pytest.fixture
def stored() -> Param:
    param = Param("model.layers.3.mlp.up.weight", (4, 6))
    ParamStore([param], Numerics(cython_kernels.load("reference"), "fp64"))
    return param


def test_asking_whether_to_accumulate_changes_nothing(stored):
    stored.begin_step()
    assert [stored.should_accumulate(), stored.should_accumulate()] == [False, False]
    stored.grad_written()
    assert stored.should_accumulate(), "the next chunk of the same contribution is added"
    stored.begin_step()
    stored.grad_added()
    assert stored.should_accumulate(), "the next contribution is added"


def test_a_listener_hears_of_whole_contributions_alone(stored):
    heard: list[str] = []
    stored.on_grad = lambda param: heard.append(param.name)
    stored.begin_step()
    stored.grad_written()
    assert heard == []
    stored.grad_added()
    assert heard == ["model.layers.3.mlp.up.weight"]


def test_an_accumulator_holds_zeros_only_before_the_first_contribution(stored):
    kernels = cython_kernels.load("reference")
    stored.grad[...] = 7.0
    stored.begin_step()
    grad = stored.accumulator(kernels)
    assert grad is stored.grad and not grad.any()
    grad += 1.0
    assert (stored.accumulator(kernels) == 1.0).all()


def test_the_role_is_the_name_without_the_layer(stored):
    assert stored.spec.role == "model.layers.mlp.up.weight"


def test_a_spec_is_decided_before_the_parameter_has_memory(stored):
    param = Param("norm.weight", (4,), decay=False)
    param.tag(trainable=False)
    assert (param.trainable, param.spec.decay) == (False, False)
    for late in (lambda: stored.tag(trainable=False), lambda: stored.shard((2, 6), ())):
        with pytest.raises(AssertionError, match=r"model\.layers\.3"):
            late()


def test_a_shard_takes_its_regions_of_a_block(stored):
    param = Param("qkv.weight", (12, 6))
    param.shard((4, 6), (ShardRegion(0, 2, 2), ShardRegion(2, 9, 2)))
    held, whole = np.zeros((4, 6)), np.arange(72.0).reshape(12, 6)
    for row in range(0, 12, 5):  # blocks that end inside of a region
        param.put(held, whole[row : row + 5], row)
    np.testing.assert_array_equal(held, whole[[2, 3, 9, 10]])
    assert param.is_sharded and param.global_shape == (12, 6)
