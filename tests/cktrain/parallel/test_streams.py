"""A named stream crosses layers and pipeline stages beside the residual stream, and its gradient comes back."""

from __future__ import annotations

import numpy as np
import pytest
from thread_group import run_ranks

from cktrain import cython_kernels
from cktrain.comm.solo_group import SoloGroup
from cktrain.data.loader import Batch
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.pipeline import Stage
from cktrain.parallel.schedules import make_schedule, slots_needed
from cktrain.parallel.stages import keep_stage

MICRO_BATCHES = 3
SHAPE = 2, 16


class Writer(Module):
    """Passes the stream on, and leaves twice of it as the stream "memory"."""

    def forward(self, out, x, slot, residual=None, alpha=1.0):
        out[...] = x
        np.multiply(x, 2, out=slot.streams["memory"].value)

    def backward(self, dx, dy, x, slot, accumulate=False):
        np.add(dy, 2 * slot.streams["memory"].gradient, out=dx)


class Reader(Module):
    """Adds the square of the memory to the stream."""

    def forward(self, out, x, slot, residual=None, alpha=1.0):
        np.add(x, slot.streams["memory"].value ** 2, out=out)

    def backward(self, dx, dy, x, slot, accumulate=False):
        memory = slot.streams["memory"]
        memory.gradient += 2 * memory.value * dy
        dx[...] = dy


def model_of(config):
    """embedding, writer, block, reader, block, reader, head"""
    numerics = Numerics(cython_kernels.load("reference"), "fp64")
    model = build_model(config.model, numerics, SHAPE[1])
    embedding, first, second, head = model.layers
    readers = [Reader(f"model.reader.{number}", numerics) for number in range(2)]
    model.layers = [embedding, Writer("model.writer", numerics), first, readers[0], second, readers[1], head]
    model.streams = {"memory": lambda slot: (slot.rows, model.hidden_size)}
    return model


def batches() -> list[Batch]:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 61, (MICRO_BATCHES, SHAPE[0], SHAPE[1] + 1)).astype(np.int32)
    return [Batch(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:])) for a in ids]


def train(model, group, schedule) -> tuple[list[float], dict[str, np.ndarray]]:
    params = ParamStore(model.params(), model.num)
    params.initialize(4)
    params.begin_sums()
    actions = make_schedule(schedule, group.size, MICRO_BATCHES)[group.rank]
    slots = model.plan(*SHAPE).allocate(slots_needed(actions))
    sums = Stage(model, group, slots, CommTimer()).train(batches(), actions)
    return [each.loss for each in sums], {param.name: param.grad for param in params.params}


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_two_stages_compute_what_one_does(tiny, schedule, cut):
    config = tiny()

    def stage(group):
        model = model_of(config)
        keep_stage(model, [(0, cut), (cut, 5)][group.rank], group.rank, 2)
        return train(model, group, schedule)

    losses, wanted = train(model_of(config), SoloGroup(), "1f1b")
    (none, first), (found, last) = run_ranks(2, stage)
    assert none == [0.0] * MICRO_BATCHES
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    grads = {**first, **last}
    assert grads.keys() == wanted.keys()
    for name, grad in wanted.items():
        np.testing.assert_allclose(grads[name], grad, rtol=1e-10, atol=1e-12, err_msg=name)


def test_the_gradient_of_a_stream_is_central_differences(tiny):
    config = tiny()
    model = model_of(config)
    _, grads = train(model, SoloGroup(), "1f1b")
    slot = model.plan(*SHAPE).allocate()[0]

    def loss() -> float:
        return sum(model.forward_loss(b.ids, b.labels, slot, train=False)[0] for b in batches())

    table = model.embedding.tokens.weight
    for row, column in ((batches()[0].ids[0, 0], 3), (batches()[1].ids[1, 5], 0)):
        before = table.data[row, column]
        table.data[row, column] = before + 1e-5
        above = loss()
        table.data[row, column] = before - 1e-5
        difference = (above - loss()) / 2e-5
        table.data[row, column] = before
        assert grads[table.name][row, column] == pytest.approx(difference, rel=1e-6)
