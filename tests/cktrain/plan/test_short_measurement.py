"""A long micro-batch by a short one: what is known exactly of kernels that are slower than they were thought to be."""

from __future__ import annotations

import pytest

from cktrain import cython_kernels
from cktrain.nn.numerics import Numerics
from cktrain.parallel.costs import PredictedKernels
from cktrain.parallel.mesh import Mesh
from cktrain.plan import short_measurement
from cktrain.plan.plan import predict_whole_model
from cktrain.plan.short_measurement import measure_short, shortened

ALONE = Mesh(1, 1, 1)


@pytest.fixture
def numerics():
    return Numerics(cython_kernels.load("reference"), "fp32")


def test_there_is_nothing_to_shorten_of_one_short_sequence(tiny):
    assert shortened(tiny(**{"batch.micro_batch_size": 1})) is None
    brief = shortened(tiny(**{"data.sequence_length": 1000}))
    assert brief is not None
    assert (brief.batch.micro_batch_size, brief.data.sequence_length) == (1, short_measurement.SHORT)


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_kernels_at_a_third_of_their_rates_take_three_times_as_long(
    tiny, numerics, monkeypatch, checkpointing
):
    config = tiny(**{"data.sequence_length": 600, "memory.checkpointing": checkpointing})
    thought, real = PredictedKernels(3e9, 1.5e9), PredictedKernels(1e9, 0.5e9)
    monkeypatch.setattr(
        short_measurement,
        "measure_costs",
        lambda brief, numerics, mesh: predict_whole_model(brief, mesh, "fp32", real),
    )
    found = measure_short(config, ALONE, numerics, thought)
    right = predict_whole_model(config, ALONE, "fp32", real)
    for part, other in (
        (found.embedding, right.embedding),
        (found.head, right.head),
        *zip(found.blocks, right.blocks, strict=True),
    ):
        assert part.forward == pytest.approx(other.forward, rel=1e-12)
        assert part.backward == pytest.approx(other.backward, rel=1e-12)


def test_attention_grows_with_the_square_of_the_length(tiny, numerics, monkeypatch):
    """What is measured at 256 tokens does not hide that a block of 4,096 spends more on attention."""
    rates = PredictedKernels(1e9, 1e12)
    monkeypatch.setattr(
        short_measurement,
        "measure_costs",
        lambda brief, numerics, mesh: predict_whole_model(brief, mesh, "fp32", rates),
    )
    settings = {"batch.micro_batch_size": 1, "batch.global_batch_size": 1}
    once, twice = (
        measure_short(tiny(**settings, **{"data.sequence_length": length}), ALONE, numerics, rates)
        .blocks[0]
        .both
        for length in (2048, 4096)
    )
    assert twice > 2.5 * once
