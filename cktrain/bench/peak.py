"""`cktrain bench peak`: what this machine can do at most, by the same kernels' instruction sets and pool.

FLOP/s come from register-only loops of independent multiply-adds (csrc/peak.h), bandwidths from streaming
arrays of four times the last-level cache each. Both take the best of several short runs: a limit is what was
reached once. Bytes are those that the program reads and writes; a cache that fetches a line before it is
written moves more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.memory.arena import Arena

MIXES = {
    "read": (1, 0, 0),
    "write": (0, 1, 0),
    "copy": (1, 1, 0),
    "triad": (2, 1, 0),
    "update": (1, 0, 3),
}
"""Name -> (arrays read, arrays written, arrays read and written in place); `update` is AdamW's mix."""

DEFAULT_CACHE_BYTES = 32 << 20

SPIN_SECONDS = 0.04
"""How long OpenBLAS's threads spin at most: 2^26 cycles. Those of OpenMP spin less."""


@dataclass(frozen=True)
class FlopRate:
    """Multiply-adds of one instruction set on a number of threads."""

    isa: str
    precision: str
    threads: int
    gflops: float


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of one mix of reads and writes; `stores` is the faster of plain and streaming."""

    mix: str
    threads: int
    gbs: float
    stores: str


@dataclass(frozen=True)
class PeakReport:
    """What `bench peak --json` prints."""

    cpu: str
    operand_bytes: int
    flops: list[FlopRate]
    bandwidth: list[Bandwidth]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Lines for people."""
        lines = [self.cpu, "", f"{'multiply-add':<16}{'precision':<11}{'threads':>7}{'GFLOP/s':>10}"]
        lines += [f"{r.isa:<16}{r.precision:<11}{r.threads:>7}{r.gflops:>10.1f}" for r in self.flops]
        lines += ["", f"{'memory':<16}{'stores':<11}{'threads':>7}{'GB/s':>10}"]
        lines += [f"{r.mix:<16}{r.stores:<11}{r.threads:>7}{r.gbs:>10.1f}" for r in self.bandwidth]
        return "\n".join([*lines, f"operands of {self.operand_bytes:,} bytes each"])


def measure_flops(kernels: Any, precision: str, seconds: float = 0.3) -> float:
    """FLOP/s of the widest multiply-add of the kernel set on all its threads: the best of `flop_rates`."""
    return max(flop_rates(kernels, precision, seconds))


def flop_rates(kernels: Any, precision: str, seconds: float = 0.3) -> list[float]:
    """FLOP/s of each of the short runs of the register loop that fit into about `seconds`.

    The reference kernels are measured by the best compiled set; fp64 counts half of fp32. ValueError when
    nothing is compiled.
    """
    multiply_adds = _activate(kernels).multiply_adds
    share = 0.5 if precision == "fp64" else 1.0
    rates = _rates(lambda steps: int(multiply_adds(precision == "bf16", steps)), seconds)
    return [share * rate for rate in rates]


def settle(kernels: Any) -> None:
    """To be called after another library computed: its threads spin for some milliseconds, on cores that are needed.

    Waits for them; the register loop then runs until the set's own threads have a core each again.
    """
    time.sleep(SPIN_SECONDS)
    measure_flops(kernels, "fp32", 0.03)


def measure_bandwidth(
    kernels: Any, mix: str, streaming: bool, cache_bytes: int | None = None, runs: int = 5
) -> float:
    """Bytes per second of MIXES[mix] on all threads, operands four times the last-level cache each."""
    peak = _activate(kernels)
    reads, writes, updates = MIXES[mix]
    arrays = _operands(reads + writes + updates, cache_bytes)
    inputs, out = arrays[: reads + updates], arrays[reads:]
    peak.stream(arrays, [])  # each thread touches its own pages first
    best = float("inf")
    nbytes = 0
    for _ in range(runs):
        began = time.perf_counter()
        nbytes = peak.stream(out, inputs, streaming)
        best = min(best, time.perf_counter() - began)
    return nbytes / best


def measure_peak(kernels: Any, threads: int) -> PeakReport:
    """All instruction sets on one thread and on `threads`, and the memory. `kernels` are in force after."""
    counts = sorted({1, threads})
    flops, bandwidth = [], []
    for isa in cython_kernels.available()[1:]:
        compiled = cython_kernels.load(isa)
        for count in counts:
            compiled.set_num_threads(count)
            for precision in ("fp32", "bf16") if isa in cython_kernels.BF16_ISAS else ("fp32",):
                flops.append(FlopRate(isa, precision, count, measure_flops(compiled, precision) / 1e9))
    for count in counts:
        kernels.set_num_threads(count)
        for mix, (_, writes, updates) in MIXES.items():
            kinds = ("plain", "streaming") if writes + updates else ("plain",)
            rates = {kind: measure_bandwidth(kernels, mix, kind == "streaming") for kind in kinds}
            stores = max(rates, key=lambda kind: rates[kind])
            bandwidth.append(Bandwidth(mix, count, rates[stores] / 1e9, stores))
    return PeakReport(cpu_name(), _operand_bytes(None), flops, bandwidth)


def cpu_name() -> str:
    """The processor's name as Linux tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown processor"


def last_level_cache_bytes(sysfs: str = "/sys") -> int:
    """The sizes of all distinct caches of the highest level, added; a usual size where the tree is hidden."""
    sizes: dict[tuple[int, str], int] = {}
    for cache in Path(sysfs).glob("devices/system/cpu/cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((cache / "level").read_text())
            shared = (cache / "shared_cpu_list").read_text().strip()
            sizes[level, shared] = int((cache / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last) or DEFAULT_CACHE_BYTES


def _activate(kernels: Any) -> Any:
    """Puts the set's table in force; returns the module of the loops."""
    names = cython_kernels.available()
    if names == ["reference"]:
        raise ValueError(
            "[bench.peak] no kernels are compiled, so no peak can be measured. Build cktrain first."
        )
    if kernels.isa == "reference":
        cython_kernels.load(cython_kernels.best())
    else:
        kernels.activate()
    from cktrain.cython_kernels import peak

    return peak


def _rates(run: Callable[[int], int], seconds: float) -> list[float]:
    """Operations per second of many short runs; the first ones, which find the steps of a run, do not count."""
    steps, took = 1000, 0.0
    while took < seconds / 200:
        steps *= 2
        began = time.perf_counter()
        run(steps)
        took = time.perf_counter() - began
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while not rates or time.perf_counter() < end:
        began = time.perf_counter()
        operations = run(steps)
        rates.append(operations / (time.perf_counter() - began))
    return rates


def _operand_bytes(cache_bytes: int | None) -> int:
    return 4 * (cache_bytes or last_level_cache_bytes())


def _operands(count: int, cache_bytes: int | None) -> list[np.ndarray]:
    """`count` fp32 arrays in one arena, a few lines apart from sharing cache sets."""
    n = _operand_bytes(cache_bytes) // 4 // 1024 * 1024
    arena = Arena("bandwidth", count * (4 * n + 4096 + 256))
    arrays = []
    for _ in range(count):
        arrays.append(arena.array((n,), np.dtype(np.float32)))
        arena.array((1024 + 64,), np.dtype(np.float32))
    return arrays
