"""What the parts of a model cost on one rank: seconds of a micro-batch's forward and backward.

Measured: a model with one block of each kind, divided as the rank would divide it, with real arrays and random tokens;
frozen weights have their file's dtype, so that widening them is measured too.
Predicted: the whole model without memory, where each kernel takes the time that its arithmetic or its bytes need. Both
run the model's own code with a clock around its parts. Messages between ranks cost nothing here (`fake_group.py`).
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cktrain.bench.profile import ProfiledKernels
from cktrain.config import Config
from cktrain.cython_kernels.ops import OPS
from cktrain.hf.freeze import hold_as_stored
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot
from cktrain.models.build import build_model, styles_of
from cktrain.models.transformer import PlanLoss, Transformer
from cktrain.nn.numerics import Numerics
from cktrain.parallel.fake_group import fake_ranks
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.tensor import divide_layers
from cktrain.training.objective_table import OBJECTIVES

LEAST_ROUNDS = 2
LEAST_SECONDS = 0.3

Clock = Callable[[], float]


@dataclass(frozen=True)
class Cost:
    """Seconds of one micro-batch on one rank."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class ModelCosts:
    """The costs of a whole model's parts."""

    embedding: Cost
    blocks: tuple[Cost, ...]
    head: Cost
    """Final norm, head and loss."""
    outside: float = 0.0
    """The part of the time that was spent outside the kernels, in Python."""

    @property
    def whole(self) -> Cost:
        """All parts together."""
        return self.stage((0, len(self.blocks)), True, True)

    def stage(self, blocks: tuple[int, int], is_first: bool, is_last: bool) -> Cost:
        """What a stage with these blocks costs."""
        parts = list(self.blocks[slice(*blocks)])
        parts += [self.embedding] * is_first + [self.head] * is_last
        return Cost(sum(part.forward for part in parts), sum(part.backward for part in parts))


class PredictedKernels:
    """A kernel set that computes nothing: each op takes its FLOPs at `flops_rate` or its bytes at `bytes_rate`."""

    def __init__(self, flops_rate: float, bytes_rate: float) -> None:
        """FLOP/s of the matrix products, and bytes per second from memory, of one rank."""
        self._rates = flops_rate, bytes_rate
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        """An op that takes its time, whichever of the two limits is the longer."""
        cost_of = OPS[name].cost
        flops_rate, bytes_rate = self._rates

        def op(*args: Any, **kwargs: Any) -> None:
            cost = cost_of(args, kwargs)
            self.seconds += max(cost.flops / flops_rate, cost.bytes / bytes_rate)

        setattr(self, name, op)
        return op


def kinds_of(model: Transformer, rows: int, length: int) -> list[Any]:
    """What tells blocks of different costs apart: their parameters' shapes and dtypes, their floating-point operations,
    and whether they have a backward at all.
    """
    without_backward = model.layers[: model.untrained_layers]
    return [
        (
            block.role,
            tuple((param.shape, param.spec.storage, param.spec.blocks) for param in block.params()),
            block.flops(rows, length),
            block in without_backward,
        )
        for block in model.blocks
    ]


def measure_costs(config: Config, numerics: Numerics, mesh: Mesh) -> ModelCosts:
    """Time this rank's share of one block of each kind, the embedding and the head, on the pool's threads.

    `config.model` is resolved. Takes the memory of these parts for as long as it runs. Raises ValueError for what
    does not divide.
    """
    model = divided_model(config, numerics, mesh)
    shape = config.batch.resolved_micro_batch_size, config.data.sequence_length
    kinds = kinds_of(model, shape[0] * shape[1], shape[1])
    first_of = {kind: kinds.index(kind) for kind in kinds}
    model.keep_blocks([model.blocks[i] for i in first_of.values()])
    params = ParamStore(model.params(), numerics)
    rng = np.random.default_rng(0)
    pattern = rng.standard_normal(4099) * 0.02
    for param in params.params:
        param.data.reshape(-1)[...] = np.resize(pattern, param.data.size)
    params.refresh()
    loss = OBJECTIVES[config.objective.name].plan
    slot = model.plan(*shape, loss=loss).allocate()[0]
    ids = rng.integers(0, config.model.vocab_size, (2, *shape), dtype=np.int32)
    plain, profiled = numerics.kernels, ProfiledKernels(numerics.kernels)
    numerics.kernels = profiled
    rounds: list[dict[str, float]] = []
    try:
        began = time.perf_counter()
        while len(rounds) <= LEAST_ROUNDS or time.perf_counter() - began < LEAST_SECONDS:
            profiled.reset()
            entered = time.perf_counter()
            parts = time_parts(model, slot, ids[0], ids[1], time.perf_counter, loss)
            whole = time.perf_counter() - entered
            inside = sum(total.seconds for total in profiled.totals.values())
            rounds.append({**parts, "outside": (whole - inside) / whole})
    finally:
        numerics.kernels = plain
    middle = {key: statistics.median(each[key] for each in rounds[1:]) for key in rounds[0]}
    number = {kind: i for i, kind in enumerate(first_of)}
    return _costs(middle, [number[kind] for kind in kinds], middle["outside"])


def predict_costs(
    model: Transformer,
    slot: Slot,
    kernels: PredictedKernels,
    clock: Clock | None = None,
    loss: PlanLoss | None = None,
) -> ModelCosts:
    """The same for all parts of a model, or of a stage, without memory: `slot`'s arrays are shapes alone.

    `loss` is the objective's, None the model's own. With a `clock`, what that says of each part while the kernels compute
    nothing.
    """
    ids = np.zeros((slot.batch_size, slot.sequence_length), np.int32)
    plain, model.num.kernels = model.num.kernels, kernels
    try:
        with np.errstate(all="ignore"):
            parts = time_parts(model, slot, ids, ids, clock or (lambda: kernels.seconds), loss)
    finally:
        model.num.kernels = plain
    return _costs(parts, list(range(len(model.blocks))), 0.0)


def divided_model(config: Config, numerics: Numerics, mesh: Mesh) -> Transformer:
    """The whole depth of the model, each layer divided as tensor rank 0 divides it; no storage yet."""
    length, folder = config.data.sequence_length, config.model.from_pretrained
    by_block = config.memory.checkpointing == "block"
    model = build_model(config.model, numerics, length, by_block, config.adapter)
    if folder is not None and any(not param.trainable for param in model.params()):
        hold_as_stored(folder, config.model, model)
    ranks = fake_ranks(mesh, 0, config.model.kv_heads)
    rows = config.batch.resolved_micro_batch_size * length
    divide_layers(model, styles_of(config.model), ranks.tensor, ranks.comm_timer, rows)
    return model


def time_parts(
    model: Transformer,
    slot: Slot,
    tokens: np.ndarray,
    targets: np.ndarray,
    clock: Clock,
    loss: PlanLoss | None = None,
) -> dict[str, float]:
    """One forward and backward; the clock's time of each part by "embedding forward", "block 0 backward" …"""
    spent: dict[str, float] = defaultdict(float)

    def watch(thing: Any, method: str, key: str) -> None:
        call = getattr(thing, method)

        def timed(*args: Any) -> Any:
            began = clock()
            result = call(*args)
            spent[key] += clock() - began
            return result

        setattr(thing, method, timed)
        watched.append((thing, method))

    watched: list[tuple[Any, str]] = []
    if model.embedding is not None:
        watch(model.embedding, "forward", "embedding forward")
        watch(model.embedding, "backward", "embedding backward")
    for number, block in enumerate(model.blocks):
        watch(block, "forward", f"block {number} forward")
        watch(block, "recompute", f"block {number} backward")
        watch(block, "backward", f"block {number} backward")
    try:
        x = model.hidden(tokens, slot)
        began = clock()
        if model.head is not None:
            (Transformer.loss if loss is None else loss)(model, x, targets, slot, True)
        spent["head forward"] += clock() - began
        before = sum(seconds for key, seconds in spent.items() if key.endswith("backward"))
        began = clock()
        model.backward_loss(tokens, slot)
        whole = clock() - began
        others = sum(seconds for key, seconds in spent.items() if key.endswith("backward")) - before
        spent["head backward"] = whole - others
    finally:
        for thing, method in watched:
            delattr(thing, method)
    return spent


def _costs(parts: dict[str, float], numbers: list[int], outside: float) -> ModelCosts:
    def cost(name: str) -> Cost:
        return Cost(parts.get(f"{name} forward", 0.0), parts.get(f"{name} backward", 0.0))

    return ModelCosts(cost("embedding"), tuple(cost(f"block {n}") for n in numbers), cost("head"), outside)
