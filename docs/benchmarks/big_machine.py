"""What a machine with many cores makes of cktrain: one command measures it, writes a page and names what falls short.

    python docs/benchmarks/big_machine.py --page docs/benchmarks/big_CPU_DATE.md [--only peak step …] [--short]

| part | measured at 1, 2, 4 … threads | expected at least |
|---|---|---|
| `peak` | multiply-adds of each instruction set (AMX too), memory | 0.85 of one thread's, times the threads |
| `products` | the reference model's linear layers | 0.9 of one thread's share of the peak; 0.97 of numpy's |
| `step` | the reference model's training step | 0.8 of one thread's share of the peak |
| `decode` | tokens of the reference model, one after the other | 0.8 of the memory's read bandwidth |
| `ranks` | a step of 16 sequences by ranks × threads on all cores | several ranks at their best as fast as one |
| `allreduce` | 2, 4 … 16 ranks over shared memory | 0.7 of two ranks' rate per link |
| `lora` | a LoRA step on all cores, beside transformers with PEFT | PEFT's tokens per second |

Nothing else should run. PyTorch, transformers and peft are optional; what could not be measured is listed with its reason.
`--short` takes one and all threads and small shapes: it tells that the command works, not how fast the machine is.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from contenders import CASES, Contender, take_turns

from cktrain import cython_kernels
from cktrain.bench.peak import cpu_name
from cktrain.cython_kernels import _runtime

HERE = Path(__file__).resolve().parent
REFERENCE = str(HERE / "reference.yaml")
SMALL = ["--set", "model.num_hidden_layers=2", "--set", "model.vocab_size=4096"]
LORA_SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "vocab_size": 32000}
MOST_RANKS = 16
LONGEST_COMMAND = 1800.0
"""Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Expectation:
    """What a figure should be, as a ratio."""

    what: str
    found: float
    at_least: float

    @property
    def shortfall(self) -> str | None:
        """A sentence, where the figure is too low."""
        if self.found >= self.at_least:
            return None
        return f"{self.what}: {self.found:.2f}, expected {self.at_least:.2f} or more"


@dataclass
class Part:
    """A part of the page."""

    name: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    expected: list[Expectation] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def expect(self, what: str, found: float, at_least: float) -> None:
        """Note a figure that is held against a bound."""
        self.expected.append(Expectation(f"{self.name}, {what}", found, at_least))


class NotMeasuredError(RuntimeError):
    """A command ended with an error, or not in time."""


def printed(command: list[str]) -> Any:
    """The JSON that a command prints. Raises NotMeasuredError with the end of what it said."""
    words = " ".join(Path(word).name if os.path.isabs(word) else word for word in command)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LONGEST_COMMAND, cwd=HERE, check=False
        )
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"{words}: not done after {LONGEST_COMMAND:.0f} s") from None
    found = [line for line in done.stdout.splitlines() if line.startswith(("{", "[{"))]
    if done.returncode or not found:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise NotMeasuredError(f"{words}: exit status {done.returncode}: {' '.join(said)}")
    return json.loads(found[-1])


def cktrain(*words: str) -> Any:
    """What a command of cktrain prints as JSON."""
    return printed([sys.executable, "-m", "cktrain.launch.cli", *words, "--json"])


def counts(most: int, short: bool = False) -> list[int]:
    """1, 2, 4 … and `most`; in short 1 and `most`."""
    powers = [2**i for i in range(most.bit_length()) if 2**i < most]
    return sorted({*(powers[:1] if short else powers), most})


@dataclass(frozen=True)
class Machine:
    """What is measured, and how thoroughly."""

    cores: int
    precisions: tuple[str, ...]
    short: bool = False

    @property
    def threads(self) -> list[int]:
        """The numbers of threads."""
        return counts(self.cores, self.short)

    @property
    def ranks(self) -> list[int]:
        """The numbers of ranks."""
        return counts(min(self.cores, MOST_RANKS), self.short)


def peak(machine: Machine) -> Part:
    """Multiply-adds and memory."""
    part = Part("peak", ("what", "threads", "figure", "per thread, of one"))
    one: dict[tuple[str, str], float] = {}
    for threads in machine.threads:
        found = cktrain("bench", "peak", "--threads", str(threads))
        for row in found["flops"]:
            key = row["isa"], row["precision"]
            if row["threads"] != threads or row["isa"] in ("generic", "amx_emulated"):
                continue
            share = row["gflops"] / one.setdefault(key, row["gflops"]) / threads
            part.rows.append((" ".join(key), str(threads), f"{row['gflops']:,.0f} GFLOP/s", f"{share:.2f}"))
            part.expect(f"{' '.join(key)}, {threads} threads", share, 0.85)
        part.rows += [
            (f"memory, {row['mix']}", str(threads), f"{row['gbs']:.1f} GB/s", "")
            for row in found["bandwidth"]
            if row["threads"] == threads
        ]
    return part


def products(machine: Machine) -> Part:
    """Linear layers."""
    part = Part("products", ("product", "type", "threads", "GFLOP/s", "of the peak", "beside others"))
    shapes = "out" if machine.short else "qkv,out,gate_up,down,head"
    for precision in machine.precisions:
        one: dict[tuple[str, str], float] = {}
        for threads in machine.threads:
            words = ["--precision", precision, "--threads", str(threads), "--shapes", shapes]
            rows = cktrain("bench", "gemm", *words, "--repetitions", "3" if machine.short else "7")["rows"]
            mine = [row for row in rows if row["library"] in ("cktrain", cython_kernels.best())]
            for row in mine:
                key = row["shape"], row["product"]
                name, where = " ".join(key), f"{precision}, {threads} threads"
                others = {
                    other["library"]: row["gflops"] / other["gflops"]
                    for other in rows
                    if (other["shape"], other["product"]) == key and other not in mine
                }
                beside = ", ".join(f"{ratio:.2f} x {library}" for library, ratio in others.items())
                figures = (f"{row['gflops']:,.0f}", f"{100 * row['ratio']:.0f} %", beside)
                part.rows.append((name, precision, str(threads), *figures))
                share = row["ratio"] / one.setdefault(key, row["ratio"])
                part.expect(f"{name}, {where}, of one thread's share", share, 0.9)
                if "numpy" in others:
                    part.expect(f"{name}, {where}, beside numpy", others["numpy"], 0.97)
    return part


def step(machine: Machine) -> Part:
    """The training step of one rank."""
    part = Part("step", ("type", "threads", "seconds", "tokens/s", "of the peak"))
    for precision in machine.precisions:
        one = 0.0
        for threads in machine.threads:
            settings = ["--set", f"launch.threads={threads}", "--set", f"precision={precision}"]
            settings += SMALL if machine.short else []
            found = cktrain("bench", "step", REFERENCE, "--steps", "3", *settings)
            one = one or found["mfu"]
            figures = (
                f"{found['step_s']:.3f}",
                f"{found['tokens_per_s']:,.0f}",
                f"{100 * found['mfu']:.0f} %",
            )
            part.rows.append((precision, str(threads), *figures))
            part.expect(f"{precision}, {threads} threads, of one thread's share", found["mfu"] / one, 0.8)
    return part


def decode(machine: Machine) -> Part:
    """Writing, which reads all weights for each token."""
    part = Part("decode", ("type", "threads", "tokens/s", "GB/s", "of the memory"))
    size = ["--prompt", "64", "--tokens", "16" if machine.short else "64"]
    for precision in machine.precisions:
        for threads in machine.threads:
            words = ["--threads", str(threads), "--dtype", precision, *size]
            found = cktrain("bench", "decode", REFERENCE, *words)
            share = found["decode_gbs"] / found["read_gbs"]
            figures = (f"{found['decode_tps']:.1f}", f"{found['decode_gbs']:.1f}", f"{100 * share:.0f} %")
            part.rows.append((precision, str(threads), *figures))
            part.expect(f"{precision}, {threads} threads", share, 0.8)
    return part


def ranks(machine: Machine) -> Part:
    """All cores, divided into ranks; the global batch is the same."""
    part = Part(
        "ranks", ("type", "ranks × threads", "seconds (least to most)", "waited", "of one rank's speed")
    )
    case = "reference" if machine.short else "many"
    divisions = [n for n in machine.ranks if CASES[case].micro_batch % n == 0]
    for precision in machine.precisions:
        contenders = [Contender(f"{n} ranks", "cktrain", n, case, precision, 2) for n in divisions]
        take_turns(contenders, 1 if machine.short else 5, 1)
        seconds = {n: statistics.median(c.times) for n, c in zip(divisions, contenders, strict=True)}
        for n, contender in zip(divisions, contenders, strict=True):
            spread = f"{seconds[n]:.3f} ({min(contender.times):.3f} to {max(contender.times):.3f})"
            waited = f"{statistics.median(contender.waited):.3f}"
            layout = f"{n} × {machine.cores // n}"
            part.rows.append((precision, layout, spread, waited, f"{seconds[1] / seconds[n]:.2f}"))
        if len(divisions) > 1:
            best = min(found for n, found in seconds.items() if n > 1)
            part.expect(f"{precision}, several ranks at their best beside one", seconds[1] / best, 1.0)
    return part


def allreduce(machine: Machine) -> Part:
    """Sums over ranks in shared memory."""
    part = Part("allreduce", ("bytes", "buffers", "ranks", "microseconds", "GB/s per link"))
    two: dict[tuple[int, str], float] = {}
    for n in machine.ranks[1:]:
        words = ["launch", "-n", str(n), "bench", "collectives", "--transport", "shm", "--op", "all_reduce"]
        for row in cktrain(*words, "--sizes", "64k,1m,64m", "--no-rivals"):
            key = row["bytes"], row["buffers"]
            share = row["busbw_gbs"] / two.setdefault(key, row["busbw_gbs"])
            figures = (f"{row['p50_us']:,.0f}", f"{row['busbw_gbs']:.1f}")
            part.rows.append((f"{row['bytes']:,}", row["buffers"], str(n), *figures))
            part.expect(
                f"{row['bytes']:,} bytes, {row['buffers']}, {n} ranks, of two ranks' rate", share, 0.7
            )
    if machine.cores < 2:
        part.missing.append("one core has no two ranks")
    return part


def lora(machine: Machine) -> Part:
    """A LoRA step on random weights beside PEFT's."""
    part = Part("lora", ("type", "cktrain tokens/s", "PEFT tokens/s", "ratio"))
    layers, length = (2, 128) if machine.short else (12, 512)
    with tempfile.TemporaryDirectory() as folder:
        shape = json.dumps({**LORA_SHAPE, "num_hidden_layers": layers})
        peft = [sys.executable, str(HERE / "peft_step.py"), folder, str(machine.cores), str(length)]
        printed([*peft, "fp32", "--make", shape])
        settings = {
            "model": f"{{from_pretrained: {folder}}}",
            "adapter": "{r: 16, lora_alpha: 32}",
            "data.sequence_length": length,
        }
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        for precision in machine.precisions:
            mine, theirs = [], []
            for _ in range(1 if machine.short else 3):
                more = ["--set", f"precision={precision}", "--steps", "3"]
                mine.append(cktrain("bench", "step", REFERENCE, *words, *more)["tokens_per_s"])
                theirs.append(printed([*peft, precision])["tokens_per_s"])
            a, b = statistics.median(mine), statistics.median(theirs)
            part.rows.append((precision, f"{a:,.0f}", f"{b:,.0f}", f"{a / b:.2f}"))
            part.expect(f"{precision}, beside PEFT", a / b, 1.0)
    return part


PARTS: dict[str, Callable[[Machine], Part]] = {
    "peak": peak,
    "products": products,
    "step": step,
    "decode": decode,
    "ranks": ranks,
    "allreduce": allreduce,
    "lora": lora,
}


def measured(names: list[str], machine: Machine) -> Iterator[Part]:
    """Each part; one whose command fails says so, and has no rows."""
    for name in names:
        try:
            yield PARTS[name](machine)
        except RuntimeError as error:
            yield Part(name, (), missing=[str(error)])


def page(machine: Machine, parts: list[Part], seconds: float) -> str:
    """Markdown: the machine, what falls short, what is missing, the tables."""
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    caches = ", ".join(f"{size >> 10:,} KiB" for size in _runtime.caches())
    short = [found for part in parts for each in part.expected if (found := each.shortfall)]
    missing = [f"{part.name}: {reason}" for part in parts for reason in part.missing]
    lines = [
        f"# {cpu_name()}, {machine.cores} cores",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, NUMA nodes: {nodes}, {memory / 1e9:.0f} GB of memory, caches {caches}, "
        f"{cython_kernels.best()}: `python docs/benchmarks/big_machine.py{' --short' if machine.short else ''}`, "
        f"{seconds:.0f} s.",
        "",
        "## What falls short",
        *[f"- {sentence}" for sentence in short or ["nothing that was measured"]],
        "",
    ]
    if missing:
        lines += ["## Not measured", *[f"- {sentence}" for sentence in missing], ""]
    for part in parts:
        if part.rows:
            lines += [f"## {part.name}", f"| {' | '.join(part.head)} |", "|---" * len(part.head) + "|"]
            lines += [f"| {' | '.join(row)} |" for row in part.rows] + [""]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    bf16 = cython_kernels.best() in cython_kernels.BF16_ISAS
    cores = len(os.sched_getaffinity(0))
    machine = Machine(cores, ("fp32", "bf16") if bf16 else ("fp32",), options.short)
    began, parts = time.monotonic(), []
    for part in measured(options.only, machine):
        parts.append(part)
        print(f"{part.name}: {len(part.rows)} rows {' '.join(part.missing)}", file=sys.stderr, flush=True)
    text = page(machine, parts, time.monotonic() - began)
    print(text)
    if options.page:
        options.page.write_text(text)


if __name__ == "__main__":
    main()
