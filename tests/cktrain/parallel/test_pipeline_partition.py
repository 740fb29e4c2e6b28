"""Which stages a run gets: its list, what was measured, or what was measured before."""

from __future__ import annotations

import json

import pytest

from cktrain import cython_kernels
from cktrain.memory.arena import arena_accounts
from cktrain.nn.numerics import Numerics
from cktrain.parallel import pipeline_partition as module
from cktrain.parallel.costs import Cost, ModelCosts, measure_costs
from cktrain.parallel.fake_group import fake_ranks
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.pipeline_partition import choose_partition, mean_costs, partition_by_costs


@pytest.fixture
def numerics():
    return Numerics(cython_kernels.load(), "fp32")


def ranks(stages: int, stage: int = 0):
    return fake_ranks(Mesh(1, stages, 1), stage, kv_heads=2)


def costs(*blocks: float, embedding: float = 0.0, head: float = 0.0) -> ModelCosts:
    return ModelCosts(Cost(embedding, 0), tuple(Cost(b / 3, 2 * b / 3) for b in blocks), Cost(head, 0))


def test_the_slowest_stage_is_as_fast_as_can_be():
    assert partition_by_costs(costs(1, 1, 1, 1), 2) == [(0, 2), (2, 4)]
    assert partition_by_costs(costs(1, 1, 1, 1, head=2), 2) == [(0, 3), (3, 4)]
    assert partition_by_costs(costs(3, 1, 1, 1), 2) == [(0, 1), (1, 4)]
    assert partition_by_costs(costs(1, 1, 1, 1, embedding=2), 2) == [(0, 1), (1, 4)]


def test_measured_costs_tell_a_large_head_from_a_small_one(tiny, numerics):
    """4000 words against 61: the head's cost grows with them, a layer's does not; nothing stays allocated."""
    held = arena_accounts()
    found = [
        measure_costs(tiny(**{"model.vocab_size": words}), numerics, Mesh(1, 2, 1)) for words in (61, 8000)
    ]
    assert all(len(c.blocks) == 2 and c.blocks[0].forward > 0 and c.blocks[0].backward > 0 for c in found)
    assert found[1].head.both > 3 * found[0].head.both
    assert 0 < found[0].outside < 1
    assert arena_accounts() <= held  # what an earlier test held may go meanwhile


def test_a_kind_of_layer_is_measured_once(tiny, numerics, monkeypatch):
    """Layers with and without a sliding window differ; those of one kind cost the same."""
    monkeypatch.setattr("cktrain.parallel.costs.LEAST_SECONDS", 0)
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = tiny(**{"model.num_hidden_layers": 3, "model.sliding_window": 4, "model.layer_types": kinds})
    first, second, third = measure_costs(config, numerics, Mesh(1, 1, 1)).blocks
    assert first == third != second


def test_what_was_decided_is_kept_and_asked_again_for_another_model(tiny, numerics, monkeypatch):
    answers = iter([costs(1, 1, 1, 5), costs(1, 1, 1, 1), costs(5, 1, 1, 1)])
    monkeypatch.setattr(module, "measure_costs", lambda *_: next(answers))
    four = tiny(**{"model.num_hidden_layers": 4})
    assert choose_partition(four, numerics, ranks(2)) == [(0, 3), (3, 4)]
    assert choose_partition(four, numerics, ranks(2)) == [(0, 3), (3, 4)]  # from the file
    wider = tiny(**{"model.num_hidden_layers": 4, "model.intermediate_size": 48})
    assert choose_partition(wider, numerics, ranks(2)) == [(0, 2), (2, 4)]
    stored = json.loads((module.Path(four.run.dir) / module.FILE).read_text())
    assert stored["layers"] == [2, 2]
    (module.Path(four.run.dir) / module.FILE).write_text("{")  # damaged: measured anew
    assert choose_partition(wider, numerics, ranks(2)) == [(0, 1), (1, 4)]


def test_the_mean_of_all_ranks_decides():
    """Every rank gets the same costs, so every rank cuts alike."""

    class TwoRanks(type(ranks(2).world)):
        def all_gather_bytes(self, data):
            return [
                data,
                json.dumps({**json.loads(data), "head": {"forward": 4.0, "backward": 0.0}}).encode(),
            ]

    both = ranks(2)
    object.__setattr__(both, "world", TwoRanks(0, 2, "world"))
    mean = mean_costs(costs(1, 1, 1, 1, head=2), both)
    assert mean.head.forward == 3 and mean.blocks == costs(1, 1, 1, 1).blocks


def test_a_list_says_each_stages_layers(tiny, numerics):
    config = tiny(**{"model.num_hidden_layers": 4, "parallel.cut": [3, 1]})
    assert choose_partition(config, numerics, ranks(2)) == [(0, 3), (3, 4)]
    for wrong in ([2, 1], [4], [2, 1, 1]):
        with pytest.raises(
            ValueError, match=rf"parallel.cut \[{', '.join(map(str, wrong))}\] has .* the model has 4"
        ):
            choose_partition(
                tiny(**{"model.num_hidden_layers": 4, "parallel.cut": wrong}), numerics, ranks(2)
            )


@pytest.mark.parametrize("setting", [{"parallel.cut": "flops"}, {"run.deterministic": True}])
def test_without_measuring_operations_are_counted(tiny, numerics, monkeypatch, setting):
    monkeypatch.setattr(module, "measure_costs", lambda *_: pytest.fail("measured"))
    assert choose_partition(tiny(**setting), numerics, ranks(2)) is None
    assert choose_partition(tiny(), numerics, ranks(1)) is None
