"""Times whole training steps of cktrain and of PyTorch on this machine, side by side in one run.

    python docs/benchmarks/side_by_side.py [--case reference|small|odd] [--precision fp32 bf16] [--rounds 3] [--steps 2]

Every contender is a process of its own that sets itself up once, then waits; in each round each one is asked in turn
for a few steps, so a drift of the machine's speed meets all alike. The figure is the median of the rounds. Contenders:
cktrain; PyTorch eager; torch.compile; torch.compile under DistributedDataParallel with as many one-threaded processes
as cores, over gloo. All do the same work: forward, backward, clip at 1.0, AdamW, on the same shapes, random tokens.

PyTorch's model is the one its users would write: scaled_dot_product_attention, fused AdamW, autocast for bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """Shapes of one comparison; PyTorch computes the accumulated micro-batches as one batch."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    sequence: int
    micro_batch: int
    accumulation: int


CASES = {
    "reference": Case(12, 768, 2048, 12, 12, 32000, 512, 4, 1),
    "small": Case(1, 256, 1024, 8, 4, 1024, 8, 1, 8),
    "odd": Case(3, 192, 384, 8, 8, 1024, 768, 1, 4),
}
CONTENDERS = ("cktrain", "eager", "compile", "ddp")


# ------------------------------------------------------------------------------------------- what a worker runs


def cktrain_steps(case: Case, precision: str, threads: int) -> Any:
    """A function that runs n training steps of cktrain."""
    from cktrain import cython_kernels
    from cktrain.bench.step import RandomLoader
    from cktrain.checkpoint import Progress
    from cktrain.comm.solo_group import SoloGroup
    from cktrain.config import Config
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.optim.optimizer import OPTIMIZERS
    from cktrain.parallel.mesh import Mesh
    from cktrain.parallel.part import Part
    from cktrain.parallel.ranks import divide_world
    from cktrain.trainer import Trainer

    config = Config.model_validate(
        {
            "run": {"dir": "unused", "steps": 1_000_000},
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
                "micro_batch_size": case.micro_batch,
                "global_batch_size": case.micro_batch * case.accumulation,
            },
        }
    )
    kernels = cython_kernels.load()
    kernels.set_num_threads(threads)
    numerics = Numerics(kernels, precision)
    model = build_model(config.model, numerics, case.sequence)
    part = Part(config, model, divide_world(SoloGroup(), Mesh(data=1, pipeline=1, tensor=1)))
    part.params.initialize(0)
    optimizer = OPTIMIZERS["adamw"](part.params, config.optimizer)
    loader: Any = RandomLoader(config, case.vocabulary)
    trainer = Trainer(config, part, optimizer, loader, Progress(0, 0, 0, precision))

    def run(n: int) -> None:
        for _ in range(n):
            trainer.step(trainer.progress.step + 1)

    return run


def torch_steps(case: Case, precision: str, threads: int, compiled: bool, ranks: int) -> Any:
    """A function that runs n training steps of PyTorch, as one process or as one rank of a gloo group."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(threads)
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            size, head = case.hidden, case.hidden // case.heads
            self.norm1, self.norm2 = (torch.nn.RMSNorm(size, eps=1e-5) for _ in range(2))
            self.qkv = torch.nn.Linear(size, (case.heads + 2 * case.kv_heads) * head, bias=False)
            self.out = torch.nn.Linear(size, size, bias=False)
            self.gate_up = torch.nn.Linear(size, 2 * case.intermediate, bias=False)
            self.down = torch.nn.Linear(case.intermediate, size, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            batch, length, size = x.shape
            head = size // case.heads
            parts = (
                self.qkv(self.norm1(x))
                .view(batch, length, case.heads + 2 * case.kv_heads, head)
                .transpose(1, 2)
            )
            q, k, v = parts.split([case.heads, case.kv_heads, case.kv_heads], 1)
            q, k = (
                a * cos + torch.cat([-a[..., head // 2 :], a[..., : head // 2]], -1) * sin for a in (q, k)
            )
            grouped = case.heads != case.kv_heads
            y = (
                F.scaled_dot_product_attention(q, k.to(v.dtype), v, is_causal=True, enable_gqa=grouped)
                if (q.dtype == v.dtype)
                else F.scaled_dot_product_attention(
                    q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=grouped
                )
            )
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, size))
            gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
            return x + self.down(F.silu(gate) * up)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(case.vocabulary, case.hidden)
            self.blocks = torch.nn.ModuleList(Block() for _ in range(case.layers))
            self.norm = torch.nn.RMSNorm(case.hidden, eps=1e-5)
            self.head = torch.nn.Linear(case.hidden, case.vocabulary, bias=False)
            head = case.hidden // case.heads
            angles = torch.outer(torch.arange(case.sequence), 10000.0 ** (-torch.arange(0, head, 2) / head))
            angles = torch.cat([angles, angles], -1)
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.embedding(ids)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return F.cross_entropy(
                self.head(self.norm(x)).float().view(-1, case.vocabulary), targets.view(-1)
            )

    model: Any = Model()
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(model)
    if compiled:
        model = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batch = case.micro_batch * case.accumulation // ranks
    ids = torch.randint(case.vocabulary, (batch, case.sequence + 1))
    tokens, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def run(n: int) -> None:
        for _ in range(n):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def work(name: str, case: Case, precision: str, threads: int, ranks: int, warm_up: int) -> None:
    """Answer each line "N" on stdin with the seconds of N steps and the peak memory, as JSON."""
    if name == "cktrain":
        run = cktrain_steps(case, precision, threads)
    else:
        run = torch_steps(case, precision, threads, name != "eager", ranks)
    run(warm_up)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        run(int(line))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "peak_rss": peak}), flush=True)


# ------------------------------------------------------------------------------------------------- the conductor


class Contender:
    """One or several worker processes that answer together."""

    def __init__(self, name: str, case_name: str, precision: str, cores: int, warm_up: int) -> None:
        self.name = name
        self.times: list[float] = []
        self.peak_rss = 0
        ranks, threads = (cores, 1) if name == "ddp" else (1, cores)
        store = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.mkdtemp()
        self.workers = []
        for rank in range(ranks):
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(29500 + os.getpid() % 1000),
                "TORCHINDUCTOR_CACHE_DIR": f"{store}/{rank}",
            }
            command = [
                sys.executable,
                __file__,
                "--worker",
                name,
                "--case",
                case_name,
                "--precision",
                precision,
            ]
            command += ["--threads", str(threads), "--ranks", str(ranks), "--warm-up", str(warm_up)]
            self.workers.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        self._answers("ready")

    def steps(self, n: int) -> None:
        """Run n steps and note the time of one."""
        for worker in self.workers:
            assert worker.stdin is not None
            print(n, file=worker.stdin, flush=True)
        answers = [json.loads(text) for text in self._answers("{")]
        self.times.append(max(a["seconds"] for a in answers) / n)
        self.peak_rss = max(self.peak_rss, sum(a["peak_rss"] for a in answers))

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
                    f"[side_by_side] a worker of {self.name} ended with status {worker.wait()}"
                )
            found.append(line)
        return found


def compare(case_name: str, precision: str, rounds: int, steps: int, names: list[str]) -> dict[str, Any]:
    """The median step of each contender, cktrain's share of the measured peak before and after, and the ratios."""
    from cktrain import cython_kernels
    from cktrain.bench.peak import measure_flops

    case, cores = CASES[case_name], len(os.sched_getaffinity(0))
    kernels = cython_kernels.load()
    kernels.set_num_threads(cores)
    peaks = [measure_flops(kernels, precision)]
    contenders = [Contender(name, case_name, precision, cores, warm_up=max(2, steps)) for name in names]
    try:
        for _ in range(rounds):
            for contender in contenders:
                time.sleep(0.05)  # the one before has put its threads to sleep
                contender.steps(steps)
    finally:
        for contender in contenders:
            contender.close()
    peaks.append(measure_flops(kernels, precision))
    tokens = case.micro_batch * case.accumulation * case.sequence
    matrices = (
        case.layers
        * case.hidden
        * ((2 * case.heads + 2 * case.kv_heads) * case.hidden // case.heads + 3 * case.intermediate)
        + case.vocabulary * case.hidden
    )
    flops = tokens * (6 * matrices + 6 * case.layers * case.hidden * case.sequence)
    rows = []
    mine = statistics.median(contenders[0].times)
    for contender in contenders:
        seconds = statistics.median(contender.times)
        rows.append(
            {
                "contender": contender.name,
                "step_s": seconds,
                "spread": [min(contender.times), max(contender.times)],
                "tokens_per_s": tokens / seconds,
                "of_peak": flops / seconds / max(peaks),
                "cktrain_is_faster_by": seconds / mine,
                "peak_rss_gb": contender.peak_rss / 1e9,
            }
        )
    return {
        "case": case_name,
        "precision": precision,
        "isa": kernels.isa,
        "cores": cores,
        "peaks": peaks,
        "rounds": rounds,
        "steps": steps,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """A Markdown table of one comparison."""
    peaks = " and ".join(f"{p / 1e9:,.0f}" for p in result["peaks"])
    lines = [
        f"{result['case']}, {result['precision']}, {result['isa']}, {result['cores']} cores; measured peak {peaks} "
        f"GFLOP/s before and after; median of {result['rounds']} rounds of {result['steps']} steps",
        "",
        "| contender | ms per step (min-max) | tokens/s | % of peak | cktrain is faster by | peak RSS GB |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = (1e3 * x for x in row["spread"])
        lines.append(
            f"| {row['contender']} | {1e3 * row['step_s']:,.2f} ({low:,.2f}-{high:,.2f}) | {row['tokens_per_s']:,.0f} "
            f"| {100 * row['of_peak']:.1f} | {row['cktrain_is_faster_by']:.2f} | {row['peak_rss_gb']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, then work or conduct."""
    parser = argparse.ArgumentParser(description="Whole training steps of cktrain and PyTorch, side by side.")
    parser.add_argument("--case", choices=CASES, default="reference")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    for hidden, kind in (("--worker", str), ("--threads", int), ("--ranks", int), ("--warm-up", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(
            options.worker,
            CASES[options.case],
            options.precision[0],
            options.threads,
            options.ranks,
            options.warm_up,
        )
        return
    names = ["cktrain", *(name for name in options.contenders if name != "cktrain")]
    results = [compare(options.case, p, options.rounds, options.steps, names) for p in options.precision]
    for result in results:
        print(table(result))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
