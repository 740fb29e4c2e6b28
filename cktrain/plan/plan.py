"""A run's plan: memory and wire per rank, the step's time, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any

from cktrain.config import Config
from cktrain.parallel.costs import Cost, ModelCosts, PredictedKernels, predict_costs
from cktrain.parallel.mesh import AXES, Mesh
from cktrain.parallel.pipeline_partition import partition_by_costs, partition_from_list
from cktrain.parallel.stages import Partition
from cktrain.plan.formulas import amdahl_ceiling, bubble_share, key_value_bytes
from cktrain.plan.memory import RankMemory, plan_rank
from cktrain.plan.rates import Link, UpdateRates
from cktrain.plan.step import StepPrediction, WireBytes, predict_step, reference_forward, stage_work
from cktrain.training.preference import kind_of_reference

FREE = ModelCosts(Cost(0.0, 0.0), (), Cost(0.0, 0.0))
ENDLESS = {axis: Link(math.inf) for axis in AXES}
"""Costs and links that take no time, where bytes alone are asked for."""


@dataclass(frozen=True)
class Machine:
    """What the ranks run on."""

    threads: int
    """Per rank."""
    ranks_per_node: int
    node_bytes: int
    """Memory of a node that the run may use."""
    process_bytes: int = 0
    """What a process takes before its arenas: Python and its libraries."""


@dataclass(frozen=True)
class Plan:
    """What `cktrain plan` prints; one entry of the lists per pipeline stage."""

    mesh: Mesh
    precision: str
    parameters: int
    micro_batches: int
    layers: list[int]
    memory: list[RankMemory]
    node_bytes: int
    """Of the fullest node."""
    machine: Machine
    key_value_bytes: int
    """Of one token, while generating."""
    wire: list[WireBytes] = field(default_factory=list)
    step: StepPrediction | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    balanced_bubble: float = 0.0
    disturbance: str = ""
    """What other work did to the measurements."""
    spread: float | None = None
    """Of the machine's speed while it was measured, to either side of its median, as a share of it."""
    serial: float | None = None
    """The part of a micro-batch's time, on one thread, that more threads do not shorten."""
    ceiling: float | None = None
    """Amdahl's, of the threads of a rank."""

    @property
    def fits(self) -> bool:
        """Whether every node has the memory."""
        return self.node_bytes <= self.machine.node_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        memory = [{**asdict(rank), "total": rank.total} for rank in self.memory]
        return {**asdict(self), "memory": memory, "fits": self.fits}


def plan_cuts(config: Config, mesh: Mesh, costs: ModelCosts | None) -> Partition | None:
    """The stages that the run will have; None: cut by floating-point operations."""
    layers = config.model.num_hidden_layers
    assert layers is not None
    if isinstance(config.parallel.cut, list):
        return partition_from_list(config.parallel.cut, layers, mesh.pipeline)
    if config.parallel.cut == "measured" and costs is not None and not config.run.deterministic:
        return partition_by_costs(costs, mesh.pipeline)
    return None


def predict_whole_model(config: Config, mesh: Mesh, precision: str, kernels: PredictedKernels) -> ModelCosts:
    """The predicted costs of all of a model's parts on one rank of the mesh, without memory."""
    alone = replace(mesh, pipeline=1)
    parallel = config.parallel.model_copy(update={"pipeline": 1})
    rank = plan_rank(config.model_copy(update={"parallel": parallel}), alone, 0, precision)
    return predict_costs(rank.part.model, rank.stage.slots[0], kernels, loss=rank.part.plan_loss)


def make_plan(
    config: Config,
    mesh: Mesh,
    precision: str,
    machine: Machine,
    costs: ModelCosts | None = None,
    rates: UpdateRates | None = None,
    links: Mapping[str, Link] | None = None,
) -> Plan:
    """Plan a run whose `config.model` is resolved; without costs, rates and links its memory alone.

    Raises ValueError, with the numbers, for what does not divide.
    """
    cuts = plan_cuts(config, mesh, costs)
    ranks = [
        plan_rank(config, mesh, stage, precision, cuts, machine.threads) for stage in range(mesh.pipeline)
    ]
    memory = [replace(rank.memory, process=machine.process_bytes) for rank in ranks]
    layers = [len(rank.part.model.blocks) for rank in ranks]
    first, model = ranks[0].part, config.model
    heads = model.kv_heads
    plan = Plan(
        mesh=mesh,
        precision=precision,
        parameters=sum(_size(shape) for shape in first.shapes.values()),
        micro_batches=first.micro_batches,
        layers=layers,
        memory=memory,
        node_bytes=fullest_node(mesh, memory, machine.ranks_per_node),
        machine=machine,
        key_value_bytes=key_value_bytes(
            model.num_hidden_layers, heads, model.resolved_head_dim, 2 if precision == "bf16" else 4
        ),
        balanced_bubble=bubble_share(mesh.pipeline, first.micro_batches),
    )
    blocks = pairwise(accumulate(layers, initial=0))
    works = [
        stage_work(rank, costs or FREE, own, links or ENDLESS)
        for rank, own in zip(ranks, blocks, strict=True)
    ]
    plan = replace(plan, wire=[work.wire for work in works])
    if costs is None or rates is None or links is None:
        return plan
    step = predict_step(ranks, works, rates, links)
    if config.objective.name == "dpo":
        beside = kind_of_reference(config) == "adapter_off"
        step = step.with_reference(reference_forward(works, costs.head, first.micro_batches), beside)
    tokens = config.batch.resolved_global_batch_size * config.data.sequence_length / step.step
    serial = costs.outside / (costs.outside + (1 - costs.outside) * machine.threads)
    return replace(
        plan,
        step=step,
        tokens_per_second=tokens,
        flops_per_second=tokens * first.flops_per_token,
        serial=serial or None,
        ceiling=amdahl_ceiling(serial) if serial else None,
    )


def fullest_node(mesh: Mesh, memory: list[RankMemory], ranks_per_node: int) -> int:
    """Bytes of the node whose ranks hold most; ranks stand in nodes in their order."""
    totals = [memory[mesh.coordinates(rank)["pipeline"]].total for rank in range(mesh.world)]
    return max(sum(totals[start : start + ranks_per_node]) for start in range(0, mesh.world, ranks_per_node))


def node_bytes(config: Config, mesh: Mesh, precision: str, machine: Machine) -> int:
    """Bytes of the fullest node, and nothing else of the plan; ValueError for what does not divide."""
    cuts = plan_cuts(config, mesh, None)
    ranks = [
        plan_rank(config, mesh, stage, precision, cuts, machine.threads) for stage in range(mesh.pipeline)
    ]
    memory = [replace(rank.memory, process=machine.process_bytes) for rank in ranks]
    return fullest_node(mesh, memory, machine.ranks_per_node)


def refusal(config: Config, mesh: Mesh, precision: str, machine: Machine, needed: int) -> str:
    """Why a run whose fullest node needs so many bytes cannot be, and one change with which it can; "" where it fits."""
    if needed <= machine.node_bytes:
        return ""
    ranks = machine.ranks_per_node
    who = f"{ranks} ranks on a node need" if ranks > 1 else "the run needs"
    return (
        f"[memory] {who} {gib(needed)}, and there are {gib(machine.node_bytes)}. "
        f"{remedy(config, mesh, precision, machine)}"
    )


def remedy(config: Config, mesh: Mesh, precision: str, machine: Machine) -> str:
    """One change with which the run fits, the first that does of those that cost least time; or what is missing."""
    for change, altered in _changes(config):
        needed = node_bytes(altered, mesh, precision, machine)
        if needed <= machine.node_bytes:
            return f"Set {change}: then it is {gib(needed)}."
    least = node_bytes(_smallest(config), mesh, precision, machine)
    more = -(-least // machine.node_bytes)
    return (
        f"With memory.checkpointing: block and batch.micro_batch_size: 1 it is still {gib(least)}: use "
        f"about {more} times as many nodes, and parallel.tensor or parallel.pipeline as many times larger."
    )


def gib(nbytes: float) -> str:
    """12.3 GiB."""
    return f"{nbytes / 2**30:,.2f} GiB"


def _changes(config: Config) -> Iterator[tuple[str, Config]]:
    """(what to set, the config with it), the cheapest first."""
    if config.parallel.zero == 0:
        yield (
            "parallel.zero: 1",
            config.model_copy(update={"parallel": config.parallel.model_copy(update={"zero": 1})}),
        )
    size = config.batch.resolved_micro_batch_size
    smaller = [n for n in range(size - 1, 0, -1) if size % n == 0]
    for n in smaller:
        yield f"batch.micro_batch_size: {n}", _with_micro_batch(config, n)
    if config.memory.checkpointing == "none":
        block = config.model_copy(
            update={"memory": config.memory.model_copy(update={"checkpointing": "block"})}
        )
        yield "memory.checkpointing: block", block
        for n in smaller:
            yield f"memory.checkpointing: block and batch.micro_batch_size: {n}", _with_micro_batch(block, n)


def _smallest(config: Config) -> Config:
    return list(_changes(config))[-1][1] if list(_changes(config)) else config


def _with_micro_batch(config: Config, size: int) -> Config:
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro_batch_size": size})})


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
