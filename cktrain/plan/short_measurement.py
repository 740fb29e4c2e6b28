"""Costs of a micro-batch that takes too long to be measured whole: one short sequence is measured, and the rest follows.

A layer's kernels reach about the same share of their limits with some hundred rows as with thousands. So a sequence of
SHORT tokens is measured and predicted; what the one takes over the other, for each part and direction, is by how much the
prediction of the long micro-batch is off. What attention does with the length is in the prediction.
"""

from __future__ import annotations

from cktrain.config import Config
from cktrain.nn.numerics import Numerics
from cktrain.parallel.costs import Cost, ModelCosts, PredictedKernels, measure_costs
from cktrain.parallel.mesh import Mesh
from cktrain.plan.plan import predict_whole_model

SHORT = 256
"""Tokens of the sequence that is measured."""


def shortened(config: Config) -> Config | None:
    """The configuration with one short sequence in a micro-batch; None where it has no longer one."""
    batch, data = config.batch, config.data
    length = min(data.sequence_length, SHORT)
    if (batch.resolved_micro_batch_size, data.sequence_length) == (1, length):
        return None
    return config.model_copy(
        update={
            "batch": batch.model_copy(update={"micro_batch_size": 1}),
            "data": data.model_copy(update={"sequence_length": length}),
        }
    )


def seconds_to_measure(costs: ModelCosts) -> float:
    """What one round of `measure_costs` takes: one block of each kind, and the head."""
    return sum(dict.fromkeys(block.both for block in costs.blocks)) + costs.head.both


def scale_up(
    short: ModelCosts, config: Config, mesh: Mesh, numerics: Numerics, rates: PredictedKernels
) -> ModelCosts:
    """The costs of the configuration's micro-batch, from those measured of the shortened one."""
    brief = shortened(config)
    assert brief is not None, "there is something to shorten"
    expected = predict_whole_model(brief, mesh, numerics.precision, rates)
    wanted = predict_whole_model(config, mesh, numerics.precision, rates)

    def scaled(part: Cost, took: Cost, thought: Cost) -> Cost:
        return Cost(
            _times(part.forward, took.forward, thought.forward),
            _times(part.backward, took.backward, thought.backward),
        )

    blocks = zip(wanted.blocks, short.blocks, expected.blocks, strict=True)
    return ModelCosts(
        scaled(wanted.embedding, short.embedding, expected.embedding),
        tuple(scaled(*parts) for parts in blocks),
        scaled(wanted.head, short.head, expected.head),
        short.outside,
    )


def measure_short(config: Config, mesh: Mesh, numerics: Numerics, rates: PredictedKernels) -> ModelCosts:
    """The costs by a short measurement, of a configuration that can be shortened."""
    brief = shortened(config)
    assert brief is not None, "there is something to shorten"
    return scale_up(measure_costs(brief, numerics, mesh), config, mesh, numerics, rates)


def _times(predicted: float, took: float, thought: float) -> float:
    """A part of which nothing is predicted, as of an embedding that is not trained, costs nothing more."""
    return predicted * took / thought if thought else predicted
