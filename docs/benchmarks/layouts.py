"""Steps of several layouts: as `cktrain plan` predicts them, and as they are; and the pipeline's bubble, three ways.

    python docs/benchmarks/layouts.py [--precision fp32] [--steps 4] [--cases one data tensor pipeline balanced]

A job of one rank with all cores, or of as many one-threaded ranks as cores, predicts each case's step from what it
measures at its start, composes the run and times it, in one process per rank. Random tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

MODEL = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 1408,
    "vocab_size": 8192,
}
# Whether one rank has all cores, and what differs from a step of 8 micro-batches of 1 x 512 tokens.
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "one": (True, {}),
    "data": (False, {"parallel": {"data": -1}}),
    "data, zero 0": (False, {"parallel": {"data": -1, "zero": 0}}),
    "tensor": (False, {"parallel": {"data": 1, "tensor": -1}}),
    "pipeline": (False, {"parallel": {"data": 1, "pipeline": -1}}),
    "balanced": (False, {"parallel": {"data": 1, "pipeline": -1}, "model": {**MODEL, "vocab_size": 64}}),
}


def run_case(name: str, group: Any, threads: int, precision: str, steps: int, folder: str) -> dict[str, Any]:
    """Predict, compose and time one case on this rank."""
    from cktrain import cython_kernels
    from cktrain.bench.step import RandomLoader
    from cktrain.checkpoint import Progress
    from cktrain.config import Config
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.optim.table import OPTIMIZERS
    from cktrain.parallel.bubble import measure_bubble
    from cktrain.parallel.costs import measure_costs
    from cktrain.parallel.mesh import resolve_mesh
    from cktrain.parallel.model_shard import ModelShard
    from cktrain.parallel.pipeline import Clock
    from cktrain.parallel.pipeline_partition import choose_partition, mean_costs
    from cktrain.parallel.ranks import divide_world
    from cktrain.plan.plan import Machine, make_plan
    from cktrain.plan.rates import measure_links, measure_update
    from cktrain.training.trainer import Trainer

    config = Config.model_validate(
        {
            "run": {"dir": f"{folder}/{name}", "steps": 1_000_000},
            "model": MODEL,
            "data": {"path": "unused", "sequence_length": 512},
            "batch": {"micro_batch_size": 1, "global_batch_size": 8},
            **CASES[name][1],
        }
    )
    kernels = cython_kernels.load()
    kernels.set_num_threads(threads)
    group.use_reduction(getattr(kernels, "reduction", None))
    numerics = Numerics(kernels, precision)
    mesh = resolve_mesh(config.parallel, group.size)
    ranks = divide_world(group, mesh)

    cuts = choose_partition(config, numerics, ranks)
    links = measure_links(ranks)
    group.barrier()
    costs = mean_costs(measure_costs(config, numerics, mesh), ranks)
    group.barrier()
    rates = measure_update(config, numerics)
    if cuts is not None:
        lists = config.parallel.model_copy(update={"cut": [stop - start for start, stop in cuts]})
        config = config.model_copy(update={"parallel": lists})
    plan = make_plan(config, mesh, precision, Machine(threads, group.size, 1 << 40), costs, rates, links)

    part = ModelShard(config, build_model(config.model, numerics, 512), ranks, cuts)
    part.params.initialize(0)
    optimizer = OPTIMIZERS["adamw"](part.params, config.optimizer, part.data.update_spans)
    loader: Any = RandomLoader(config, config.model.vocab_size or 1)
    batches = loader.batch(0)[: part.micro_batches]
    loader.batch = lambda step: batches
    trainer = Trainer(config, part, optimizer, loader, Progress(0, 0, 0, precision))
    for _ in range(2):
        trainer.step()
    trainer.stage.clock = Clock()
    times = []
    for _ in range(steps):
        group.barrier()
        began = time.perf_counter()
        trainer.step()
        times.append(time.perf_counter() - began)
    bubble = measure_bubble(trainer.stage, part.schedule)
    assert plan.step is not None and bubble is not None
    return {
        "predicted": plan.step.step,
        "measured": statistics.median(times),
        "layers": plan.layers,
        "schedule": bubble.step_seconds,
        "simulated": bubble.simulated_seconds,
        "bubble": bubble.measured,
        "own_bubble": bubble.simulated,
        "balanced_bubble": plan.balanced_bubble,
    }


def work(cases: list[str], precision: str, steps: int, folder: str) -> None:
    """One rank: the cases in turn; rank 0 prints a line of JSON for each."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment(os.environ))
    from cktrain.comm import bootstrap

    group = bootstrap.init(environ=os.environ)
    for name in cases:
        result = run_case(name, group, binding.threads, precision, steps, folder)
        if group.rank == 0:
            print(json.dumps({"case": name, **result}), flush=True)
    group.close()


def start(cases: list[str], ranks: int, precision: str, steps: int) -> list[dict[str, Any]]:
    """Run a job of so many ranks and return what rank 0 printed."""
    folder = tempfile.mkdtemp()
    workers = []
    for rank in range(ranks):
        place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        command = [
            sys.executable,
            __file__,
            "--worker",
            folder,
            "--precision",
            precision,
            "--steps",
            str(steps),
        ]
        workers.append(
            subprocess.Popen(
                [*command, "--cases", *cases],
                env={**os.environ, **{key: str(value) for key, value in place.items()}},
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    printed = [worker.communicate()[0] for worker in workers]
    return [json.loads(line) for line in printed[0].splitlines() if line.startswith("{")]


def main() -> None:
    """Parse, then work or conduct."""
    parser = argparse.ArgumentParser(description="Predicted and measured steps of several layouts.")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.cases, options.precision, options.steps, options.worker)
        return
    cores = len(os.sched_getaffinity(0))
    rows = []
    for alone in (True, False):
        cases = [name for name in options.cases if CASES[name][0] is alone]
        if cases:
            rows += start(cases, 1 if alone else cores, options.precision, options.steps)
    print(
        f"{options.precision}, {cores} cores, 8 micro-batches of 512 tokens; median of {options.steps} steps\n"
    )
    print("| layout | predicted ms | measured ms | predicted / measured |\n|---|---|---|---|")
    for row in rows:
        ratio = row["predicted"] / row["measured"]
        print(
            f"| {row['case']} | {1e3 * row['predicted']:,.1f} | {1e3 * row['measured']:,.1f} | {ratio:.3f} |"
        )
    print(
        "\n| pipeline | layers | schedule ms | simulated from measured stages | ratio | bubble | simulated "
        "| (p-1)/(m+p-1) |\n|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        if len(row["layers"]) > 1:
            print(
                f"| {row['case']} | {' + '.join(map(str, row['layers']))} | {1e3 * row['schedule']:,.1f} "
                f"| {1e3 * row['simulated']:,.1f} | {row['schedule'] / row['simulated']:.3f} "
                f"| {100 * row['bubble']:.1f} % | {100 * row['own_bubble']:.1f} % "
                f"| {100 * row['balanced_bubble']:.1f} % |"
            )


if __name__ == "__main__":
    main()
