"""Who takes part in a comparison of whole training steps: cktrain and PyTorch, as processes that wait for their turn.

A `Contender` is one process per rank. Each sets itself up once and then answers every line "N" on its input with the time
of N steps, so that a benchmark can let all take turns: a drift of the machine's speed meets all alike. All do the same
work: forward, backward, clip at 1.0, AdamW, on the same shapes, random tokens.

PyTorch's model is the one its users would write: scaled_dot_product_attention, fused AdamW, autocast for bf16.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Run = Callable[[int], float]
"""Runs so many steps; gives the seconds in which it waited for others."""


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
    "many": Case(12, 768, 2048, 12, 12, 32000, 512, 16, 1),
    "small": Case(1, 256, 1024, 8, 4, 1024, 8, 1, 8),
    "odd": Case(3, 192, 384, 8, 8, 1024, 768, 1, 4),
}
# ------------------------------------------------------------------------------------------- what a worker runs


def cktrain_steps(case: Case, precision: str) -> Run:
    """Training steps of cktrain on this rank's cores, over the group of all ranks."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment(os.environ))
    from cktrain import cython_kernels
    from cktrain.bench.step import RandomLoader
    from cktrain.checkpoint import Progress
    from cktrain.comm import bootstrap
    from cktrain.config import Config
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics
    from cktrain.optim.table import OPTIMIZERS
    from cktrain.parallel.mesh import Mesh
    from cktrain.parallel.model_shard import ModelShard
    from cktrain.parallel.ranks import divide_world
    from cktrain.training.trainer import Trainer

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
    part = ModelShard(
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
        return sum(trainer.step().comm_seconds for _ in range(n))

    return run


def torch_steps(case: Case, precision: str, compiled: bool) -> Run:
    """Training steps of PyTorch, as one process or as one rank of a gloo group. What it waits is not known."""
    import torch
    import torch.nn.functional as F

    ranks = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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

    def run(n: int) -> float:
        for _ in range(n):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(tokens, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return 0.0

    return run


def work(kind: str, case: Case, precision: str, warm_up: int) -> None:
    """Answer each line "N" on stdin with the seconds of N steps, what of them was waited, and the peak memory, as JSON."""
    run = (
        cktrain_steps(case, precision)
        if kind == "cktrain"
        else torch_steps(case, precision, kind == "compile")
    )
    answer(run, warm_up)


def answer(run: Run, warm_up: int) -> None:
    """After so many steps of warming up, answer each line "N" on stdin as `work` says, until its end."""
    run(warm_up)
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        waited = run(int(line))
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "waited": waited, "peak_rss": peak}), flush=True)


# ------------------------------------------------------------------------------------------------- the conductor


class Workers:
    """The processes of one contender, one per rank, which answer together; they have been started."""

    def __init__(self, name: str, workers: list[subprocess.Popen[str]]) -> None:
        self.name = name
        self.workers = workers
        self.times: list[float] = []
        self.waited: list[float] = []
        self.peak_rss = 0
        self._answers("ready")

    def steps(self, n: int) -> None:
        """Run n steps on all ranks and note the slowest one's time of one."""
        for worker in self.workers:
            assert worker.stdin is not None
            print(n, file=worker.stdin, flush=True)
        answers = [json.loads(text) for text in self._answers("{")]
        self.times.append(max(a["seconds"] for a in answers) / n)
        self.waited.append(max(a["waited"] for a in answers) / n)
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
                raise RuntimeError(f"[contenders] a worker of {self.name} ended with status {worker.wait()}")
            found.append(line)
        return found


class Contender(Workers):
    """A contender of a case.

    kind: "cktrain", "eager" or "compile". The cores are divided among the ranks; ranks of PyTorch are those of
    DistributedDataParallel over gloo, ranks of cktrain data-parallel ones.
    """

    def __init__(
        self, name: str, kind: str, ranks: int, case_name: str, precision: str, warm_up: int
    ) -> None:
        threads = len(os.sched_getaffinity(0)) // ranks
        store = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.mkdtemp()
        workers = []
        for rank in range(ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(29500 + os.getpid() % 1000),
            }
            if kind != "cktrain":
                environment |= {
                    "OMP_NUM_THREADS": str(threads),
                    "TORCHINDUCTOR_CACHE_DIR": f"{store}/{rank}",
                }
            if kind != "cktrain" and ranks > 1:
                environment["OMP_WAIT_POLICY"] = "PASSIVE"
            command = [sys.executable, __file__, kind, case_name, precision, str(warm_up)]
            pipe = subprocess.PIPE
            workers.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        super().__init__(name, workers)


def take_turns(contenders: Sequence[Workers], rounds: int, steps: int) -> None:
    """Each so many steps in each round; then all are ended."""
    try:
        for _ in range(rounds):
            for contender in contenders:
                time.sleep(0.05)  # the one before has put its threads to sleep
                contender.steps(steps)
    finally:
        for contender in contenders:
            contender.close()


if __name__ == "__main__":
    work(sys.argv[1], CASES[sys.argv[2]], sys.argv[3], int(sys.argv[4]))
