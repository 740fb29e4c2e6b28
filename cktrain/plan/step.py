"""The time of a step, from what its parts cost: stages played through the schedule, and what follows the backward.

    step = the schedule of the micro-batches (stages' costs, their tensor messages, transfers between stages)
         + the slowest stage's clearing, gradient exchange, norm, update and weight exchange

A data exchange beside the computation is hidden behind the last micro-batch's backward, as far as that goes, but for
the last bucket; one that takes the cores' time is not hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cktrain.parallel.costs import Cost, ModelCosts, PredictedKernels, predict_costs
from cktrain.parallel.fake_group import FakeGroup
from cktrain.parallel.schedules import simulate
from cktrain.plan.formulas import all_reduce_bytes, half_all_reduce_bytes
from cktrain.plan.memory import PlannedRank
from cktrain.plan.rates import Link, UpdateRates

_SCORES = 1 / 3
"""Of the products of a frozen head in a preference's loss: logits once for the scores, once more for dx, and dx."""


@dataclass(frozen=True)
class WireBytes:
    """Bytes that a rank sends per step in each group."""

    gradients: float
    """Over the data group."""
    weights: float
    """Over the data group."""
    tensor: float
    pipeline: float
    replicas: float
    """Gradients of what stands on several ranks of a replica, over tensor ranks and first and last stage."""

    @property
    def total(self) -> float:
        """All groups."""
        return self.gradients + self.weights + self.tensor + self.pipeline + self.replicas


@dataclass(frozen=True)
class StepPrediction:
    """Seconds of a step, and of its parts on the slowest stage."""

    step: float
    schedule: float
    """From the first micro-batch's forward to the last one's backward."""
    bubble: float
    """The part of the schedule's time in which stages wait for each other."""
    tensor: float
    """Of the schedule's time, what the slowest stage's tensor messages take."""
    gradients: float
    """What remains of the gradients' exchange after the backward."""
    update: float
    """Clearing, norm and optimizer."""
    weights: float
    """What remains of the weights' exchange after the update."""
    reference: float = 0.0
    """The forwards of a preference's reference for the sequences of a step."""
    beside: bool = True
    """Whether these are a part of each step; else they are computed once, before the first."""

    def with_reference(self, seconds: float, beside: bool) -> StepPrediction:
        """This step of a run that has a reference."""
        return replace(self, step=self.step + seconds * beside, reference=seconds, beside=beside)


@dataclass(frozen=True)
class StageWork:
    """What one rank of a stage computes per micro-batch, and sends per step."""

    compute: Cost
    messages: Cost
    """Seconds of its tensor messages, per micro-batch."""
    wire: WireBytes


def stage_work(
    rank: PlannedRank, costs: ModelCosts, blocks: tuple[int, int], links: Mapping[str, Link]
) -> StageWork:
    """The work of a stage that has these blocks, from the costs of the whole model's parts."""
    number, last = rank.part.ranks.pipeline.rank, rank.part.ranks.last_stage
    compute = costs.stage(blocks, number == 0, number == last)
    group, link = rank.part.ranks.tensor, links["tensor"]
    assert isinstance(group, FakeGroup)
    before, calls = group.traffic.nbytes, group.traffic.calls
    messages = predict_costs(
        rank.part.model,
        rank.stage.slots[0],
        PredictedKernels(math.inf, math.inf),
        lambda: link.seconds(group.traffic.nbytes - before, group.traffic.calls - calls),
        rank.part.plan_loss,
    ).whole
    return StageWork(compute, messages, _wire(rank, group.traffic.nbytes - before))


def predict_step(
    ranks: Sequence[PlannedRank], works: Sequence[StageWork], rates: UpdateRates, links: Mapping[str, Link]
) -> StepPrediction:
    """The step of a rank per stage, whose works are given."""
    schedule = ranks[0].part.schedule
    transfer = (
        max(links["pipeline"].seconds(_stream_bytes(rank)) for rank in ranks) if len(ranks) > 1 else 0.0
    )
    played = simulate(
        schedule,
        [work.compute.forward + work.messages.forward for work in works],
        [work.compute.backward + work.messages.backward for work in works],
        transfer,
    )
    tails = [_tail(rank, work, rates, links) for rank, work in zip(ranks, works, strict=True)]
    gradients, update, weights = max(tails, key=sum)
    micro_batches = ranks[0].part.micro_batches
    return StepPrediction(
        step=played.finished + gradients + update + weights,
        schedule=played.finished,
        bubble=played.bubble,
        tensor=max(work.messages.both for work in works) * micro_batches,
        gradients=gradients,
        update=update,
        weights=weights,
    )


def reference_forward(works: Sequence[StageWork], head: Cost, micro_batches: int) -> float:
    """Seconds of a step's micro-batches, one behind the other, forward through the stages and up to the head's scores."""
    forwards = [work.compute.forward + work.messages.forward for work in works]
    forwards[-1] -= (1 - _SCORES) * head.forward
    return (micro_batches + len(works) - 1) * max(forwards)


def _tail(
    rank: PlannedRank, work: StageWork, rates: UpdateRates, links: Mapping[str, Link]
) -> tuple[float, float, float]:
    """Seconds after the backward: gradients, update, weights."""
    data, size = rank.part.data, rank.part.params.size
    link, buckets = links["data"], data.buckets
    largest = max(bucket.stop - bucket.start for bucket in buckets) / size
    gradients = link.seconds(work.wire.gradients, len(buckets))
    if link.beside and not data.deterministic:
        gradients = max(gradients * largest, gradients - work.compute.backward)
    between = links["tensor"] if rank.part.ranks.tensor.size > 1 else links["pipeline"]
    gradients += between.seconds(work.wire.replicas)
    updated = sum(stop - start for start, stop in data.update_spans)
    normed = sum(stop - start for start, stop in data.norm_spans)
    update = (size - updated) * rates.clear + normed * rates.norm + updated * rates.update
    update += rank.update_flops * rates.flop
    weights = link.seconds(work.wire.weights, len(buckets))
    if link.beside:
        weights = max(weights * largest, weights - updated * rates.update - rank.update_flops * rates.flop)
    if data.sharded and not data.weights_bf16:
        weights += size * rates.refresh
    return gradients, update, weights


def _wire(rank: PlannedRank, tensor_bytes_of_a_micro_batch: float) -> WireBytes:
    part = rank.part
    data, size, ranks = part.data, part.params.size, part.ranks
    itemsize = 2 if data.wire_bf16 else part.params.data.itemsize
    if data.deterministic and data.micro_batches > 1 and ranks.data.size > 1:
        gradients = float(size * itemsize * data.micro_batches)  # each is broadcast
    elif data.sharded and not data.deterministic:
        gradients = half_all_reduce_bytes(size * itemsize, ranks.data.size)
    else:
        gradients = all_reduce_bytes(size * itemsize, ranks.data.size)
    weights = 0.0
    if data.sharded:
        weights = half_all_reduce_bytes(
            size * (2 if data.weights_bf16 else part.params.data.itemsize), ranks.data.size
        )
    number, last = ranks.pipeline.rank, ranks.last_stage
    sends = (number != last) + (number != 0)
    replicas = sum(all_reduce_bytes(nbytes, group.size) for group, nbytes in part.partial.messages)
    return WireBytes(
        gradients=gradients,
        weights=weights,
        tensor=tensor_bytes_of_a_micro_batch * part.micro_batches,
        pipeline=float(sends * _stream_bytes(rank) * part.micro_batches),
        replicas=replicas,
    )


def _stream_bytes(rank: PlannedRank) -> int:
    """What passes between stages: the streams of a micro-batch, a tensor rank's rows of them."""
    return sum(array.nbytes for array in rank.part.model.stage_gradients(rank.stage.slots[0]))
