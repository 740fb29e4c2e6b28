"""`cktrain bench step CONFIG`: the whole training step on random tokens, and where its time goes.

Runs the real Trainer on one rank with a loader that draws random ids; two passes: an untouched one for the step time,
a profiled one for the ops. Between the steps the register loop of `bench peak` runs for a moment: its best run is the
peak, and its median is what this machine sustained meanwhile, where its clock or its neighbours move.
"""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cktrain.bench.peak import flop_rates
from cktrain.bench.profile import ProfiledKernels
from cktrain.checkpoint import Progress
from cktrain.comm.solo_group import SoloGroup
from cktrain.config import Config
from cktrain.data.loader import Batch
from cktrain.hf.freeze import hold_as_stored
from cktrain.hf.peft_targets import loras
from cktrain.hf.tensors import hf_tensors, load_weights
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.ranks import divide_world
from cktrain.training.metrics import proportional_set_size
from cktrain.training.trainer import Trainer


class RandomLoader:
    """The same interface as `BatchLoader`, with ids drawn once."""

    wait_seconds = 0.0

    def __init__(self, config: Config, vocab_size: int) -> None:
        rng = np.random.default_rng(config.run.seed)
        shape = (config.batch.resolved_micro_batch_size, config.data.sequence_length + 1)
        count = config.batch.resolved_global_batch_size // config.batch.resolved_micro_batch_size
        ids = [rng.integers(0, vocab_size, shape, dtype=np.int32) for _ in range(count)]
        self._batches = [Batch(np.ascontiguousarray(a[:, :-1]), np.ascontiguousarray(a[:, 1:])) for a in ids]

    def batch(self, consumed: int) -> list[Batch]:
        """The micro-batches, the same in every step."""
        return self._batches


@dataclass
class StepReport:
    """What `bench step --json` prints."""

    tokens_per_s: float
    tflops: float
    mfu: float
    peak_tflops: float
    sustained_tflops: float
    peak_memory_bytes: int
    peak_rss_bytes: int
    step_s: float
    threads: int
    isa: str
    precision: str
    ops: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


LOOP_SECONDS = 0.2
"""How long the register loop runs after each step."""


def bench_step(config: Config, kernels: Any, precision: str, steps: int) -> StepReport:
    """Measure `steps` steps after two for warming up, of which the median counts, then as many profiled ones.

    ValueError where no kernels are compiled, so that there is no peak.
    """
    if (
        config.run.steps is None
    ):  # of epochs, which are counted in the data's sequences; here there is no data
        config = config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})
    numerics = Numerics(kernels, precision)
    part = _part(config, numerics)
    optimizer = OPTIMIZERS[config.optimizer.name](part.params, config.optimizer)
    assert config.model.vocab_size is not None
    loader: Any = RandomLoader(config, config.model.vocab_size)
    trainer = Trainer(config, part, optimizer, loader, Progress(0, 0, 0, precision))
    for _ in range(2):
        trainer.step()
    times: list[float] = []
    rates: list[float] = []
    for _ in range(steps):
        began = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - began)
        rates += flop_rates(kernels, precision, LOOP_SECONDS)
    seconds, peak_flops = statistics.median(times), max(rates)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = proportional_set_size() or rss
    ops = _profile(trainer, numerics, steps, peak_flops)
    tokens = config.batch.resolved_global_batch_size * config.data.sequence_length
    flops = tokens * part.flops_per_token / seconds
    return StepReport(
        tokens_per_s=tokens / seconds,
        tflops=flops / 1e12,
        mfu=flops / peak_flops,
        peak_tflops=peak_flops / 1e12,
        sustained_tflops=statistics.median(rates) / 1e12,
        peak_memory_bytes=memory,
        peak_rss_bytes=rss,
        step_s=seconds,
        threads=kernels.num_threads(),
        isa=kernels.isa,
        precision=precision,
        ops=ops,
    )


def _part(config: Config, numerics: Numerics) -> ModelShard:
    """The whole model with fresh weights; beside an adapter with those of its folder, in their files' dtype."""
    length, folder = config.data.sequence_length, config.model.from_pretrained
    by_block = config.memory.checkpointing == "block"
    model = build_model(config.model, numerics, length, by_block, config.adapter)
    names = [tensor.name for tensor in hf_tensors(config.model, model.params())]
    frozen = any(not param.trainable for param in model.params())
    if folder is not None and frozen:
        hold_as_stored(folder, config.model, model)
    part = ModelShard(config, model, divide_world(SoloGroup(), Mesh()))
    if folder is None or not frozen:
        part.params.initialize(config.run.seed)
        return part
    load_weights(folder, config.model, part.params, names)
    adapters = [param for param in part.params.params if param.spec.adapter]
    part.params.initialize(config.run.seed, adapters)
    for _, lora in loras(part.model):
        lora.start()
    return part


def _profile(trainer: Trainer, numerics: Numerics, steps: int, peak_flops: float) -> list[dict[str, Any]]:
    """One row per op, per step, and a last one for what is not in any op."""
    plain, profiled = numerics.kernels, ProfiledKernels(numerics.kernels)
    numerics.kernels = profiled
    try:
        trainer.step()
        profiled.reset()
        began = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        whole = (time.perf_counter() - began - profiled.own_seconds) / steps
    finally:
        numerics.kernels = plain
    rows: list[dict[str, Any]] = []
    for total in sorted(profiled.totals.values(), key=lambda t: -t.seconds):
        if not total.calls:
            continue
        gflops = total.flops / total.seconds / 1e9
        rows.append(
            {
                "name": total.name,
                "s": total.seconds / steps,
                "calls": total.calls // steps,
                "gflops": gflops,
                "gbs": total.bytes / total.seconds / 1e9,
                "roofline": gflops * 1e9 / peak_flops if total.flops else None,
            }
        )
    rest = whole - sum(row["s"] for row in rows)
    rows.append(
        {"name": "outside the ops", "s": rest, "calls": 0, "gflops": 0.0, "gbs": 0.0, "roofline": None}
    )
    return rows
