"""Plans are made without memory, count what the parts say, and find one change that makes a run fit."""

from __future__ import annotations

import resource

import pytest

from cktrain.config import Config
from cktrain.memory.arena import arena_accounts
from cktrain.parallel.costs import Cost, ModelCosts, PredictedKernels
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank
from cktrain.plan.plan import ENDLESS, Machine, make_plan, predict_whole_model, remedy
from cktrain.plan.rates import Link, UpdateRates
from cktrain.plan.text import plan_text

NO_TIME = UpdateRates(0.0, 0.0, 0.0, 0.0)


def config_of(**blocks) -> Config:
    model = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 512,
    }
    return Config.model_validate(
        {
            "run": {"dir": "unused", "steps": 1},
            "model": model,
            "data": {"path": "unused", "sequence_length": 32},
            "batch": {"micro_batch_size": 2, "global_batch_size": 16},
            **blocks,
        }
    )


def llama_70b(**blocks) -> Config:
    model = {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
        "vocab_size": 32000,
    }
    return config_of(
        **{
            "model": model,
            "data": {"path": "unused", "sequence_length": 1024},
            "batch": {"micro_batch_size": 1, "global_batch_size": 8},
            **blocks,
        }
    )


def test_a_model_of_70b_is_planned_in_little_memory():
    """The plan names 280 GB of masters and takes less than 1 GB to say so."""
    before, held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, arena_accounts()
    plan = make_plan(llama_70b(), Mesh(1, 1, 1), "bf16", Machine(1, 1, 1 << 50))
    assert plan.parameters == pytest.approx(69e9, rel=0.01)
    assert plan.memory[0].weights == pytest.approx(4 * plan.parameters, rel=1e-3)
    assert plan.memory[0].gradients == plan.memory[0].weights
    assert plan.memory[0].optimizer == pytest.approx(2 * plan.memory[0].weights, rel=1e-3)
    assert plan.memory[0].bf16_copy == pytest.approx(plan.memory[0].weights / 2, rel=1e-3)
    assert plan.key_value_bytes == 327_680
    assert not arena_accounts() - held
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_sums_over_ranks_are_the_model():
    """Stages and tensor shares of the weights add up to the whole, and 8 bytes of state to ZeRO's shares."""
    whole = make_plan(config_of(), Mesh(1, 1, 1), "fp32", Machine(1, 1, 1 << 40)).memory[0]
    staged = make_plan(config_of(), Mesh(1, 2, 1), "fp32", Machine(1, 1, 1 << 40)).memory
    assert sum(rank.weights for rank in staged) == whole.weights
    shared = make_plan(config_of(), Mesh(4, 1, 1), "fp32", Machine(1, 1, 1 << 40)).memory[0]
    assert shared.weights == whole.weights
    assert shared.optimizer == pytest.approx(whole.optimizer / 4, rel=0.01)


def test_wire_of_data_ranks_is_the_formula():
    """fp32: half an all-reduce of the gradients and half one of the weights."""
    config = config_of()
    costs = predict_whole_model(config, Mesh(4, 1, 1), "fp32", PredictedKernels(1e12, 1e11))
    plan = make_plan(config, Mesh(4, 1, 1), "fp32", Machine(1, 4, 1 << 40), costs, NO_TIME, ENDLESS)
    size = plan_rank(config, Mesh(4, 1, 1), 0, "fp32").part.params.size
    assert plan.wire[0].gradients == plan.wire[0].weights == pytest.approx(size * 4 * 3 / 4)
    halved = config_of(comm={"wire_dtype": "bf16"})
    plan = make_plan(halved, Mesh(4, 1, 1), "bf16", Machine(1, 4, 1 << 40), costs, NO_TIME, ENDLESS)
    assert plan.wire[0].gradients == plan.wire[0].weights == pytest.approx(size * 2 * 3 / 4)


def test_wire_of_tensor_ranks_is_eight_halves_per_layer_and_four_for_embedding_and_head():
    """docs/parallelism.md: two arrows in and two out of a layer forward, and six in all backward... by rows x width.

    In a layer each forward gathers or scatters N x C four times and each backward six; the embedding scatters and gathers
    once each, the head gathers and scatters once each, and reduces three numbers per row.
    """
    config = config_of(batch={"micro_batch_size": 2, "global_batch_size": 2})
    costs = predict_whole_model(config, Mesh(1, 1, 2), "fp32", PredictedKernels(1e12, 1e11))
    plan = make_plan(config, Mesh(1, 1, 2), "fp32", Machine(1, 2, 1 << 40), costs, NO_TIME, ENDLESS)
    rows, width, layers = 2 * 32, 64, 4
    arrows = layers * (4 + 6) + 4
    assert plan.wire[0].tensor == pytest.approx(arrows * rows * width * 4 / 2 + 3 * rows * 4)


def test_pipeline_sends_one_stream_per_micro_batch_and_direction():
    config = config_of()
    costs = predict_whole_model(config, Mesh(1, 2, 1), "fp32", PredictedKernels(1e12, 1e11))
    plan = make_plan(config, Mesh(1, 2, 1), "fp32", Machine(1, 2, 1 << 40), costs, NO_TIME, ENDLESS)
    assert plan.micro_batches == 8
    assert [wire.pipeline for wire in plan.wire] == [8 * 64 * 64 * 4] * 2


def test_the_step_is_the_schedule_and_what_follows():
    """Four layers of 3 s each, balanced: two stages of 8 micro-batches take (8 + 1) x 6 s, and a ninth is bubble."""
    costs = ModelCosts(Cost(0, 0), tuple(Cost(1, 2) for _ in range(4)), Cost(0, 0))
    plan = make_plan(config_of(), Mesh(1, 2, 1), "fp32", Machine(1, 2, 1 << 40), costs, NO_TIME, ENDLESS)
    assert plan.step is not None and plan.layers == [2, 2]
    assert plan.step.step == plan.step.schedule == pytest.approx(9 * 6)
    assert plan.step.bubble == pytest.approx(1 / 9)
    assert plan.tokens_per_second == pytest.approx(16 * 32 / 54)
    plain = make_plan(config_of(), Mesh(1, 1, 1), "fp32", Machine(1, 1, 1 << 40), costs, NO_TIME, ENDLESS)
    assert plain.step is not None and plain.step.step == pytest.approx(8 * 12)


def test_what_travels_beside_the_computation_is_hidden_but_for_its_end():
    costs = ModelCosts(Cost(0, 0), tuple(Cost(1, 2) for _ in range(4)), Cost(0, 0))
    config = config_of()
    size = plan_rank(config, Mesh(2, 1, 1), 0, "fp32").part.params.size

    def gradients(seconds: float, beside: bool) -> float:
        links = {**ENDLESS, "data": Link(size * 4 / 2 / seconds, 0.0, beside)}
        plan = make_plan(config, Mesh(2, 1, 1), "fp32", Machine(1, 2, 1 << 40), costs, NO_TIME, links)
        assert plan.step is not None
        return plan.step.gradients

    assert gradients(20, beside=False) == pytest.approx(20)
    assert gradients(20, beside=True) == pytest.approx(20)  # one bucket: it starts when the backward ends
    assert gradients(4, beside=True) == pytest.approx(4)


def test_the_serial_part_gives_amdahls_ceiling():
    """A tenth of one thread's time outside the kernels; on 4 threads it was measured as 4/13 of the time."""
    costs = ModelCosts(Cost(1, 1), (Cost(1, 1),) * 4, Cost(1, 1), outside=0.1 / (0.1 + 0.9 / 4))
    plan = make_plan(config_of(), Mesh(1, 1, 1), "fp32", Machine(4, 1, 1 << 40), costs, NO_TIME, ENDLESS)
    assert plan.serial == pytest.approx(0.1)
    assert plan.ceiling == pytest.approx(10)


@pytest.mark.parametrize(
    "blocks, change",
    [
        ({"parallel": {"zero": 0}}, "parallel.zero: 1"),
        ({}, "batch.micro_batch_size: 1"),
        ({"batch": {"micro_batch_size": 1, "global_batch_size": 16}}, "memory.checkpointing: block"),
    ],
)
def test_one_change_is_named_that_makes_it_fit(blocks, change):
    """The node is given what the changed run needs, which is less than the run as it is."""
    mesh, config = Mesh(2, 1, 1), config_of(**blocks)
    key, value = change.split(": ")
    block, name = key.split(".")
    altered = Config.model_validate(
        {
            **config.model_dump(),
            block: {**getattr(config, block).model_dump(), name: int(value) if value.isdigit() else value},
        }
    )
    enough = make_plan(altered, mesh, "fp32", Machine(1, 2, 0)).node_bytes
    machine = Machine(1, 2, enough)
    plan = make_plan(config, mesh, "fp32", machine)
    assert not plan.fits and "DOES NOT FIT" in plan_text(plan)
    assert remedy(config, mesh, "fp32", machine).startswith(f"Set {change}: then it is")


def test_what_no_change_mends_is_said():
    said = remedy(llama_70b(), Mesh(1, 1, 1), "fp32", Machine(1, 1, 64 << 30))
    assert "use about 17 times as many nodes" in said


def test_nodes_are_filled_in_the_order_of_ranks():
    """Two ranks per node, two stages: each node has a rank of both; one rank per node: the dearer one's is fullest."""
    pair = make_plan(config_of(), Mesh(2, 2, 1), "fp32", Machine(1, 2, 1 << 40))
    alone = make_plan(config_of(), Mesh(2, 2, 1), "fp32", Machine(1, 1, 1 << 40))
    totals = [rank.total for rank in pair.memory]
    assert pair.node_bytes == sum(totals)
    assert alone.node_bytes == max(totals)
