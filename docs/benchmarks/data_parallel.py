"""Times data-parallel steps of cktrain against one rank with all cores, and against PyTorch's compiled DDP over gloo.

    python docs/benchmarks/data_parallel.py [--case reference] [--precision fp32 bf16] [--rounds 5] [--steps 2]

Contenders, all with the same global batch, the same model and random tokens, on the same cores in the same run:

    1 rank        cktrain, one rank with a thread per core
    n ranks       cktrain, as many ranks as cores with one thread each, `parallel: {data: n, zero: 1}`, shared memory
    ddp           torch.compile under DistributedDataParallel over gloo, as many one-threaded processes as cores

Each is set up once and waits; in each round each one in turn runs a few steps, so a drift of the machine's speed meets
all alike. The figure is the median over rounds of the slowest rank's time; ratios are medians of ratios by round.
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

from side_by_side import CASES, Case, torch_steps

CONTENDERS = ("1 rank", "n ranks", "ddp")


def cktrain_steps(case: Case, precision: str, cores: int) -> Any:
    """A function that runs n training steps of this rank, and one that tells where the time went."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.launch.bind import bind

    binding = bind(read_process_environment(os.environ))
    from cktrain import cython_kernels
    from cktrain.bench.step import RandomLoader
    from cktrain.checkpoint import Progress
    from cktrain.comm import bootstrap
    from cktrain.config import Config
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.optim.optimizer import OPTIMIZERS
    from cktrain.parallel.mesh import Mesh
    from cktrain.parallel.part import Part
    from cktrain.parallel.ranks import divide_world
    from cktrain.trainer import Trainer

    group = bootstrap.init(environ=os.environ)
    config = Config.model_validate(
        {
            "run": {"dir": "unused", "steps": 1_000_000, "seed": group.rank},
            "model": {
                "hidden_size": case.hidden,
                "num_hidden_layers": case.layers,
                "num_attention_heads": case.heads,
                "num_key_value_heads": case.kv_heads,
                "intermediate_size": case.intermediate,
                "vocab_size": case.vocabulary,
            },
            "data": {"path": "unused", "sequence_length": case.sequence},
            "batch": {
                "micro_batch_size": max(1, case.micro_batch // group.size),
                "global_batch_size": case.micro_batch * case.accumulation,
            },
        }
    )
    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    group.use_reduction(getattr(kernels, "reduction", None))
    numerics = Numerics(kernels, precision)
    part = Part(
        config,
        build_model(config.model, numerics, case.sequence),
        divide_world(group, Mesh(group.size, 1, 1)),
    )
    part.params.initialize(0)
    optimizer = OPTIMIZERS["adamw"](part.params, config.optimizer, part.data.update_spans)
    loader: Any = RandomLoader(config, case.vocabulary)
    loader.micro_batches = loader.batch(0)[: part.micro_batches]
    loader.batch = lambda step: loader.micro_batches
    trainer = Trainer(config, part, optimizer, loader, Progress(0, 0, 0, precision))

    def run(n: int) -> float:
        return sum(trainer.step(trainer.progress.step + 1).comm_seconds for _ in range(n))

    return run


def work(name: str, case: Case, precision: str, cores: int, warm_up: int) -> None:
    """Answer each line "N" on stdin with the seconds of N steps, as JSON."""
    if name == "ddp":
        torch_run = torch_steps(case, precision, 1, True, cores)

        def run(n: int) -> float:
            torch_run(n)
            return 0.0
    else:
        run = cktrain_steps(case, precision, cores)
    run(warm_up)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        waited = run(int(line))
        print(json.dumps({"seconds": time.perf_counter() - began, "waited": waited}), flush=True)


class Contender:
    """One or several worker processes that answer together."""

    def __init__(self, name: str, case: str, precision: str, cores: int, warm_up: int) -> None:
        self.name = name
        self.times: list[float] = []
        self.waited: list[float] = []
        ranks = 1 if name == "1 rank" else cores
        store = tempfile.mkdtemp()
        self.workers = []
        for rank in range(ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(29500 + os.getpid() % 1000),
                "TORCHINDUCTOR_CACHE_DIR": f"{store}/{rank}",
            }
            if name == "ddp":
                environment |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
            command = [sys.executable, __file__, "--worker", name, "--case", case, "--precision", precision]
            command += ["--cores", str(cores), "--warm-up", str(warm_up)]
            pipe = subprocess.PIPE
            self.workers.append(
                subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
            )
        self._answers("ready")

    def steps(self, n: int) -> None:
        """Run n steps on all ranks and note the slowest one's time of one."""
        for worker in self.workers:
            assert worker.stdin is not None
            print(n, file=worker.stdin, flush=True)
        answers = [json.loads(text) for text in self._answers("{")]
        self.times.append(max(a["seconds"] for a in answers) / n)
        self.waited.append(max(a["waited"] for a in answers) / n)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()

    def _answers(self, start: str) -> list[str]:
        found = []
        for worker in self.workers:
            assert worker.stdout is not None
            line = next((line for line in worker.stdout if line.startswith(start)), None)
            if line is None:
                raise RuntimeError(
                    f"[data_parallel] a worker of {self.name} ended with status {worker.wait()}"
                )
            found.append(line)
        return found


def compare(case: str, precision: str, rounds: int, steps: int, names: list[str]) -> str:
    """A Markdown table of one comparison."""
    cores = len(os.sched_getaffinity(0))
    contenders = [Contender(name, case, precision, cores, warm_up=max(2, steps)) for name in names]
    try:
        for _ in range(rounds):
            for contender in contenders:
                contender.steps(steps)
    finally:
        for contender in contenders:
            contender.close()
    shape = CASES[case]
    tokens = shape.micro_batch * shape.accumulation * shape.sequence
    lines = [
        f"{case}, {precision}, {cores} cores, {tokens:,} tokens per step; {rounds} rounds of {steps} steps",
        "",
        "| contender | ms per step (min-max) | waited ms | tokens/s | tokens/s over that of 1 rank | over ddp |",
        "|---|---|---|---|---|---|",
    ]
    by_name = {contender.name: contender for contender in contenders}
    for contender in contenders:
        seconds = statistics.median(contender.times)
        ratios = []
        for rival in ("1 rank", "ddp"):
            theirs = by_name[rival].times if rival in by_name else []
            pairs = [t / mine for t, mine in zip(theirs, contender.times, strict=False)]
            ratios.append(f"{statistics.median(pairs):.3f}" if pairs else "-")
        low, high = 1e3 * min(contender.times), 1e3 * max(contender.times)
        lines.append(
            f"| {contender.name} | {1e3 * seconds:,.1f} ({low:,.1f}-{high:,.1f}) "
            f"| {1e3 * statistics.median(contender.waited):,.1f} | {tokens / seconds:,.0f} | {' | '.join(ratios)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, then work or conduct."""
    parser = argparse.ArgumentParser(description="Data-parallel steps of cktrain and PyTorch, side by side.")
    parser.add_argument("--case", choices=CASES, default="reference")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    for hidden, kind in (("--worker", str), ("--cores", int), ("--warm-up", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, CASES[options.case], options.precision[0], options.cores, options.warm_up)
        return
    for precision in options.precision:
        print(compare(options.case, precision, options.rounds, options.steps, options.contenders), flush=True)


if __name__ == "__main__":
    main()
