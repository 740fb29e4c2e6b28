"""When buckets start, without other ranks: a group that says it has two, and notes what is asked of it."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import CompletedWork
from cktrain.data.loader import empty_batch
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.data import DataParallel
from cktrain.parallel.pipeline import Stage
from cktrain.parallel.schedules import make_schedule

MICRO_BATCHES = 3


class TwoRanks(SoloGroup):
    """Rank 0 of two; the other one's contributions are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2
        self.events: list[str] = []

    def _reduce_scatter(self, output, input, op, counts):
        self.events.append(f"reduce {input.size}")
        return CompletedWork()

    def _all_reduce(self, array, op):
        self.events.append(f"reduce {array.size}")
        return CompletedWork()

    def _all_gather(self, output, input, counts):
        self.events.append(f"gather {output.size}")
        return CompletedWork()


@pytest.fixture
def step(tiny, monkeypatch):
    """`step(zero)` -> (the group after one step's forwards and backwards, its DataParallel)."""

    def run(zero: int = 1, tied: bool = True):
        monkeypatch.setenv("CKTRAIN_ISA", "reference")
        config = tiny(**{"model.tie_word_embeddings": tied, "model.num_hidden_layers": 2})
        model = build_model(config.model, Numerics(cython_kernels.load(), "fp64"), 16)
        params = ParamStore(model.params(), model.num)
        params.initialize(1)
        group = TwoRanks()
        data = DataParallel(
            group, params, CommTimer(), zero=zero, micro_batches=MICRO_BATCHES, bucket_bytes=8 * 500
        )
        with data.counting():
            plan = model.plan(2, 16)
        for block in model.blocks:
            backward = block.backward

            def noted(*args, name=block.name, backward=backward):
                result = backward(*args)
                group.events.append(name)
                return result

            monkeypatch.setattr(block, "backward", noted)
        stage = Stage(model, SoloGroup(), plan.allocate(), CommTimer())
        data.begin()
        actions = make_schedule("1f1b", 1, MICRO_BATCHES)[0]
        stage.train([empty_batch(2, 16)] * MICRO_BATCHES, actions, data.end_micro_batch)
        data.finish()
        return group, data

    return run


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("tied", [False, True])
def test_a_bucket_starts_when_its_last_contribution_is_in(step, zero, tied):
    group, data = step(zero, tied)
    reductions = [event for event in group.events if event.startswith("reduce")]
    assert reductions == [f"reduce {bucket.stop - bucket.start}" for bucket in data.buckets]
    backwards = [i for i, event in enumerate(group.events) if event.startswith("model.layers")]
    assert len(backwards) == 2 * MICRO_BATCHES
    started = [i for i, event in enumerate(group.events) if event.startswith("reduce")]
    assert started[0] > backwards[-3], "not before the last micro-batch"
    assert started[0] < backwards[-1], "while the backward goes on"
    assert started[-1] > backwards[-1], "the embedding comes last"


def test_a_tied_weight_gets_two_contributions(step):
    _, data = step()
    counts = {param.name: n for param, n in data._contributions.items()}
    assert counts.pop("model.embed_tokens.weight") == 2
    assert set(counts.values()) == {1}


def test_a_rank_keeps_the_state_of_its_pieces(step):
    _, sharded = step(zero=1)
    _, whole = step(zero=0)
    size = sharded.params.size
    assert whole.update_spans == [(0, size)]
    mine = sum(stop - start for start, stop in sharded.update_spans)
    assert abs(mine - size / 2) <= 16 * len(sharded.buckets)


def test_deterministic_refuses_a_rounded_wire(step):
    _, data = step()
    with pytest.raises(ValueError, match=r"comm\.wire_dtype: fp32"):
        DataParallel(data.group, data.params, CommTimer(), wire_bf16=True, deterministic=True)


def test_the_weights_of_every_bucket_are_gathered_after_the_update(step):
    group, data = step()

    class Noting:
        def step_span(self, number, lr, grad_scale, step):
            group.events.append(f"update {number}")

    group.events.clear()
    data.update(Noting(), 0.1, 1.0, 1)
    wanted = []
    for number, bucket in enumerate(data.buckets):
        wanted += [f"update {number}", f"gather {bucket.stop - bucket.start}"]
    assert group.events == wanted
    assert np.isfinite(data.params.data).all()
