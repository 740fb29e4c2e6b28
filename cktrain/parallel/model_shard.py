"""What one rank holds of the model, and how its parameters are tied to those of other ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.data.loader import Batch
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import SlotPlan
from cktrain.models.build import styles_of
from cktrain.models.transformer import Transformer
from cktrain.nn.linear import Linear
from cktrain.nn.width_norm import WidthNorm
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.buckets import Span, without
from cktrain.parallel.data import DataParallel
from cktrain.parallel.partial_gradients import PartialGradients, PartialSpan
from cktrain.parallel.pipeline import Stage
from cktrain.parallel.ranks import Ranks
from cktrain.parallel.roles import tag_by_role
from cktrain.parallel.schedules import Schedule, make_schedule, slots_needed
from cktrain.parallel.stages import Partition, keep_stage, partition_by_flops
from cktrain.parallel.tensor import divide_layers
from cktrain.training.objective import LossSums, Objective
from cktrain.training.objective_table import OBJECTIVES


class ModelShard:
    """A rank's part of the model: its stage and tensor share, its parameters, and their sums over other ranks."""

    def __init__(
        self, config: Config, model: Transformer, ranks: Ranks, cuts: Partition | None = None
    ) -> None:
        """Divide the whole `model`, whose parameters have no storage yet, and give this rank's parameters theirs.

        `cuts` are the blocks [start, stop) of each stage, the same on all ranks; None: cut by floating-point
        operations. Collective. Raises ValueError, with the numbers, for what does not divide.
        """
        batch, length = config.batch, config.data.sequence_length
        self.model = model
        self.ranks = ranks
        self.flops_per_token = model.flops_per_token(length)
        """Of the whole model."""
        self.shapes = {param.name: param.shape for param in model.params()}
        """Of all parameters of the whole model, by name."""
        self.micro_batches = micro_batches_per_rank(config, ranks)
        self.schedule: Schedule = make_schedule(
            config.parallel.schedule, ranks.mesh.pipeline, self.micro_batches
        )
        if config.run.deterministic and config.parallel.schedule == "gpipe" and ranks.mesh.pipeline > 1:
            raise ValueError(
                "[parallel] run.deterministic needs each micro-batch's backward right after its loss, and "
                "parallel.schedule gpipe puts others between. Set parallel.schedule: 1f1b."
            )
        self._slot_shape = batch.resolved_micro_batch_size, length
        self.plan_loss = OBJECTIVES[config.objective.name].plan
        """Of the run's objective, for dry runs."""
        if cuts is None:
            cuts = partition_by_flops(model, ranks.pipeline.size, length)
        tag_by_role(model.params(), styles_of(config.model))
        tied = _tied_weight(model) if ranks.pipeline.size > 1 else None
        tied = tied if tied is not None and tied.trainable else None
        if tied is not None:
            tied.tag(reduce_axes=tied.spec.reduce_axes | {"pipeline"})
        rows = batch.resolved_micro_batch_size * length
        divide_layers(model, styles_of(config.model), ranks.tensor, ranks.comm_timer, rows)
        keep_stage(model, cuts[ranks.pipeline.rank], ranks.pipeline.rank, ranks.pipeline.size)
        self.params = ParamStore(model.params(), model.num, ranks.world.allocate)
        self.data = DataParallel(
            ranks.data,
            self.params,
            ranks.comm_timer,
            zero=config.parallel.zero,
            wire_bf16=config.comm.wire_dtype == "bf16",
            weights_bf16=_weights_travel_as_bf16(config, model.num.precision),
            deterministic=config.run.deterministic,
            micro_batches=self.micro_batches,
            alone={tied} if tied is not None else (),
            whole_matrices=OPTIMIZERS[config.optimizer.name].whole_matrices,
            block=OPTIMIZERS[config.optimizer.name].block,
        )
        self.partial = PartialGradients(
            self.params,
            [*self._on_tensor_ranks(), *self._on_two_stages(tied)],
            self.data.summed_spans,
            ranks.comm_timer,
        )
        self.owned: list[Span] = without(self.data.pieces, self.partial.uncounted)
        """What of the flat buffers is this rank's to save: over all ranks, every element of the model once."""
        self._normed = without(self.data.norm_spans, self.partial.uncounted)

    @cached_property
    def stage(self) -> Stage:
        """The stage with as many slots as the schedule needs; their dry run also counts gradients' contributions."""
        with self.data.counting():
            plan = self.slot_plan()
        slots = plan.allocate(slots_needed(self.schedule[self.ranks.pipeline.rank]))
        return Stage(self.model, self.ranks.pipeline, slots, self.ranks.comm_timer)

    def slot_plan(self) -> SlotPlan:
        """What a slot of a micro-batch holds while the run's objective is minimised."""
        return self.model.plan(*self._slot_shape, loss=self.plan_loss)

    def gradients(self, batches: Sequence[Batch], objective: Objective) -> list[LossSums]:
        """Forwards and backwards of this rank's micro-batches, and the sums of gradients over the ranks. Collective.

        Returns the sums of each micro-batch; zeros where the head is not.
        """
        self.data.begin()
        actions = self.schedule[self.ranks.pipeline.rank]
        sums = self.stage.train(batches, actions, self.data.end_micro_batch, objective)
        self.data.finish()
        self.partial.sum()
        return sums

    def squared_norm(self) -> float:
        """This rank's share of the squared norm of the unnormalised gradient."""
        kernels, grad = self.model.num.kernels, self.params.grad
        return sum(kernels.sum_of_squares(grad[start:stop]) for start, stop in self._normed)

    def _on_tensor_ranks(self) -> list[PartialSpan]:
        """Parameters of which every tensor rank has a part of the gradient, and key/value heads that several have."""
        tensor = self.ranks.tensor
        if tensor.size == 1:
            return []
        spans = [
            PartialSpan(tensor, param.start, param.start + param.size)
            for param in self.params.trainable
            if "tensor" in param.spec.reduce_axes
        ]
        divided = [module for module in self.model.modules() if isinstance(module, Linear | WidthNorm)]
        for copies in sorted({module.layout.copies for module in divided} - {1}):
            group = tensor.split(tensor.rank // copies, tensor.rank)
            for module in divided:
                if module.layout.copies == copies:
                    for param, first in _divided_rows(module):
                        spans += [
                            _rows_of(param, (start - first, stop - first), group)
                            for start, stop in module.layout.copied_rows
                            if param.trainable and first <= start and stop <= first + param.shape[0]
                        ]
        return spans

    def _on_two_stages(self, tied: Param | None) -> list[PartialSpan]:
        """A tied weight, of which the first and the last stage have a copy."""
        if tied is None:
            return []
        pipeline = self.ranks.pipeline
        at_an_end = pipeline.rank in (0, pipeline.size - 1)
        group = pipeline.split(0 if at_an_end else 1 + pipeline.rank, pipeline.rank)
        return [PartialSpan(group, tied.start, tied.start + tied.size)] if at_an_end else []


def micro_batches_per_rank(config: Config, ranks: Ranks) -> int:
    """Micro-batches that each data rank computes per step. Raises ValueError when they do not divide."""
    micro, batch = config.batch.resolved_micro_batch_size, config.batch.resolved_global_batch_size
    data = ranks.data.size
    if batch % (micro * data):
        raise ValueError(
            f"[parallel] global_batch_size {batch} is not a multiple of micro_batch_size {micro} x {data} data ranks = "
            f"{micro * data}. Change one of them."
        )
    return batch // (micro * data)


def _weights_travel_as_bf16(config: Config, precision: str) -> bool:
    if config.comm.weight_dtype == "bf16" and precision != "bf16":
        raise ValueError(
            f"[parallel] comm.weight_dtype is bf16 and the precision {precision}: rounded weights would change the "
            "model. Set comm.weight_dtype: auto, or precision: bf16."
        )
    return precision == "bf16" and config.comm.weight_dtype != "fp32"


def _tied_weight(model: Transformer) -> Param | None:
    assert model.embedding is not None and model.head is not None
    weight = model.head.output.weight
    return weight if weight is model.embedding.tokens.weight else None


def _divided_rows(module: Linear | WidthNorm) -> Iterator[tuple[Param, int]]:
    """The parameters whose rows are the module's outputs on this rank, and the output of their first row."""
    for value in vars(module).values():
        if isinstance(value, Param):
            yield value, 0
    for adapter in module.adapters if isinstance(module, Linear) else ():
        for param, rows in adapter.divided_rows():
            yield param, rows.start


def _rows_of(param: Param, rows: Span, group: Group) -> PartialSpan:
    width = param.size // param.shape[0]
    return PartialSpan(group, param.start + rows[0] * width, param.start + rows[1] * width)
