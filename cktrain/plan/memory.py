"""Memory of a rank by kind, found by composing the rank with arenas that take no memory.

The same code that will ask for the arrays is asked here (`memory/arena.py`, `planning`), so the sizes are those of the
arenas' accounting. One rank of each stage stands for all: its data and tensor peers hold as much, but for a cache line, or
where an optimizer takes whole matrices, of which the data rank with the most is planned.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cktrain import cython_kernels
from cktrain.config import Config
from cktrain.hf.freeze import hold_as_stored
from cktrain.memory.arena import planning
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.buckets import Span
from cktrain.parallel.fake_group import fake_ranks
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.pipeline import Stage
from cktrain.parallel.stages import Partition
from cktrain.training.distillation import Teacher, find_teacher

KINDS = {
    "parameters": "weights",
    "frozen weights": "weights",
    "quantized weights": "weights",
    "compute weights": "bf16_copy",
    "gradients": "gradients",
    "gradients of single micro-batches": "gradients",
    "optimizer": "optimizer",
    "optimizer workspace": "workspaces",
    "activations": "activations",
    "gradients on the wire": "comm_buffers",
    "fp32 weights on the wire": "comm_buffers",
    "partial gradients": "comm_buffers",
}
"""What each of a run's arenas is for."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank."""

    weights: int = 0
    bf16_copy: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    """What backwards read, of all micro-batches that are under way at a time."""
    workspaces: int = 0
    """Temporaries that layers share, and the kernels' own."""
    comm_buffers: int = 0
    process: int = 0
    """Python and its libraries."""

    @property
    def total(self) -> int:
        """All kinds."""
        return sum(getattr(self, kind.name) for kind in fields(self))


@dataclass(frozen=True, eq=False)
class PlannedRank:
    """A rank that was composed without memory."""

    part: ModelShard
    stage: Stage
    update_flops: int
    """Of the optimizer's matrix products in one update."""
    arenas: dict[str, int]
    """Bytes by the arena's name, as `arena_accounts` of the real rank will say."""
    memory: RankMemory


def plan_rank(
    config: Config, mesh: Mesh, stage: int, precision: str, cuts: Partition | None = None, threads: int = 1
) -> PlannedRank:
    """The first rank of a pipeline stage. `config.model` is resolved; ValueError for what does not divide."""
    numerics = Numerics(cython_kernels.load(), precision)
    length = config.data.sequence_length
    with planning() as arenas:
        model = build_model(
            config.model, numerics, length, config.memory.checkpointing == "block", config.adapter
        )
        if config.model.from_pretrained is not None and any(not p.trainable for p in model.params()):
            hold_as_stored(config.model.from_pretrained, config.model, model)
        part = ModelShard(config, model, fake_ranks(mesh, stage, config.model.kv_heads), cuts)
        optimizer = OPTIMIZERS[config.optimizer.name](
            part.params, config.optimizer, _fullest_spans(config, part)
        )
        training = part.stage
        if config.objective.name == "distill" and model.head is not None:
            Teacher(find_teacher(config, None), numerics, config.batch.resolved_micro_batch_size, length)
    by_kind = dict.fromkeys((kind.name for kind in fields(RankMemory)), 0)
    for name, nbytes in arenas.items():
        by_kind[KINDS[name]] += nbytes
    shared = part.slot_plan().shared_bytes
    by_kind["activations"] -= shared
    by_kind["workspaces"] += shared + kernel_workspace(numerics, threads)
    return PlannedRank(part, training, optimizer.flops, dict(arenas), RankMemory(**by_kind))


def _fullest_spans(config: Config, part: ModelShard) -> list[Span]:
    """What the data rank with the most optimizer state updates; ranks differ by as much as a whole matrix."""
    optimizer, data = OPTIMIZERS[config.optimizer.name], part.data
    if not optimizer.whole_matrices or not data.sharded:
        return data.update_spans

    def state(spans: list[Span]) -> int:
        with planning() as arenas:
            optimizer(part.params, config.optimizer, spans)
        return arenas["optimizer"]

    return max(
        ([bucket.piece(rank) for bucket in data.buckets] for rank in range(data.group.size)), key=state
    )


def kernel_workspace(numerics: Numerics, threads: int) -> int:
    """Bytes that the compiled kernels keep for their threads; the reference kernels keep none."""
    if numerics.kernels.isa == "reference":
        return 0
    from cktrain.cython_kernels import _runtime

    each, team = _runtime.workspace()
    return each * threads + team
