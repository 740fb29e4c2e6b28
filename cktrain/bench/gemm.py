"""`cktrain bench gemm`: the linear layers of the reference model against the peak, numpy's BLAS, PyTorch and oneDNN.

Shapes: x (N, I), w (O, I), dy (N, O); three products per shape: forward x·wᵀ, input gradient dy·w, weight
gradient += dyᵀ·x. Each repetition runs the register loop of `bench peak` and every contestant one after the
other, so that all see the same clock and the same neighbours. A figure is the best repetition over the best run of
the register loop beside that shape: what others do on the machine only ever takes time, from both. Threads of OpenBLAS
and OpenMP spin for some milliseconds after a product, on the cores that the next contestant needs: it waits for them,
and the register loop then runs until its own threads have a core each again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.bench.peak import SPIN_SECONDS, cpu_name, measure_flops
from cktrain.memory.arena import Arena
from cktrain.nn.numerics import PRECISIONS

SHAPES = {
    "qkv": (2048, 768, 2304),
    "out": (2048, 768, 768),
    "gate_up": (2048, 768, 4096),
    "down": (2048, 2048, 768),
    "head": (512, 768, 32000),
    "1024": (1024, 1024, 1024),
    "4096": (4096, 4096, 4096),
    "short-qkv": (8, 256, 768),
    "short-up": (8, 256, 2048),
    "narrow-qkv": (768, 192, 576),
    "narrow-up": (768, 192, 768),
}
"""Name -> (N, I, O). The first five are those of the model with hidden size 768 at 2048 tokens."""

PASSES = ("forward", "input gradient", "weight gradient")


@dataclass(frozen=True)
class GemmRow:
    """One product by one contestant, at its best. `ratio` is its rate over the peak measured beside the shape."""

    shape: str
    n: int
    i: int
    o: int
    product: str
    library: str
    gflops: float
    ratio: float


@dataclass(frozen=True)
class GemmReport:
    """What `bench gemm --json` prints."""

    cpu: str
    isa: str
    precision: str
    threads: int
    peak_gflops: float
    rows: list[GemmRow]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """A line per product, a column of GFLOP/s and percent of peak per library."""
        libraries = list(dict.fromkeys(row.library for row in self.rows))
        lines = [
            f"{self.cpu}, {self.isa}, {self.precision}, {self.threads} threads, "
            f"peak {self.peak_gflops:.1f} GFLOP/s",
            "",
            f"{'shape':<26}{'N x I x O':<19}{'product':<17}" + "".join(f"{name:>18}" for name in libraries),
        ]
        found = {(row.shape, row.product, row.library): row for row in self.rows}
        for name, (n, i, o) in SHAPES.items():
            for product in PASSES:
                cells = [found.get((name, product, library)) for library in libraries]
                if any(cells):
                    figures = "".join(
                        f"{cell.gflops:>10.1f} {100 * cell.ratio:5.1f} %" if cell else " " * 18
                        for cell in cells
                    )
                    lines.append(f"{name:<26}{f'{n} x {i} x {o}':<19}{product:<17}{figures}")
        return "\n".join(lines)


def bench_gemm(
    kernels: Any, precision: str, shapes: list[str] | None = None, repetitions: int = 7
) -> GemmReport:
    """Products of `shapes` (default: all of SHAPES) on the set's threads, beside what else is installed."""
    threads = kernels.num_threads()
    others = _others(kernels, precision)
    rows: list[GemmRow] = []
    best_peak = 0.0
    # One thread is timed by its own clock, which stands still while others have the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    for name in shapes or list(SHAPES):
        if name not in SHAPES:
            raise ValueError(f"[bench gemm] there is no shape {name!r}. Use some of: {', '.join(SHAPES)}.")
        n, i, o = SHAPES[name]
        arrays = _arrays(n, i, o, precision)
        contestants: dict[str, list[Callable[[], Any]]] = {"cktrain": _products(kernels, *arrays)}
        contestants |= {library: make(*arrays) for library, make in others.items()}
        flops = 2 * n * i * o
        calls = max(1, round(threads * 1e8 / flops))  # half a millisecond or more
        best: dict[tuple[str, str], float] = {}
        peak = 0.0
        for _ in range(repetitions + 1):  # the first warms up
            for p, product in enumerate(PASSES):
                for library, products in contestants.items():
                    if threads > 1:
                        time.sleep(SPIN_SECONDS)
                    peak = max(peak, measure_flops(kernels, precision, 0.03 if threads > 1 else 0.005))
                    began = clock()
                    for _ in range(calls):
                        products[p]()
                    rate = calls * flops / (clock() - began)
                    best[product, library] = max(best.get((product, library), 0.0), rate)
        best_peak = max(best_peak, peak)
        for (product, library), rate in best.items():
            rows.append(GemmRow(name, n, i, o, product, library, rate / 1e9, rate / peak))
    return GemmReport(cpu_name(), kernels.label, precision, threads, best_peak / 1e9, rows)


def _arrays(n: int, i: int, o: int, precision: str) -> list[np.ndarray]:
    """x, w, dy of random values, y, dx, dw; in an arena as in training."""
    real, f32 = (np.dtype(t) for t in PRECISIONS[precision])
    specs = [((n, i), real), ((o, i), real), ((n, o), real), ((n, o), real), ((n, i), real), ((o, i), f32)]
    arena = Arena("gemm", sum(a * b * t.itemsize + 64 for (a, b), t in specs))
    arrays = [arena.array(shape, dtype) for shape, dtype in specs]
    rng = np.random.default_rng(0)
    for array in arrays[:3]:
        array[...] = rng.standard_normal(array.shape, np.float32)
    return arrays


def _products(kernels: Any, x: Any, w: Any, dy: Any, y: Any, dx: Any, dw: Any) -> list[Callable[[], Any]]:
    return [
        lambda: kernels.linear_forward(y, x, w),
        lambda: kernels.linear_backward_input(dx, dy, w),
        lambda: kernels.linear_backward_weight(dw, None, dy, x),
    ]


def _numpy(x: Any, w: Any, dy: Any, y: Any, dx: Any, dw: Any) -> list[Callable[[], Any]]:
    return [
        lambda: np.matmul(x, w.T, out=y),
        lambda: np.matmul(dy, w, out=dx),
        lambda: np.matmul(dy.T, x, out=dw),
    ]


def _onednn(kernels: Any) -> Callable[..., list[Callable[[], Any]]]:
    """The set "onednn", in force for its own products alone. ValueError where no libdnnl fits."""
    lent = cython_kernels.load(cython_kernels.ONEDNN)
    kernels.activate()

    def products(*arrays: Any) -> list[Callable[[], Any]]:
        def alone(product: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> None:
                lent.activate()
                product()
                kernels.activate()

            return run

        return [alone(product) for product in _products(lent, *arrays)]

    return products


def _pytorch(precision: str, threads: int) -> Callable[..., list[Callable[[], Any]]]:
    """PyTorch's own calls. ImportError where it is not installed."""
    import torch  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads)

    def products(x: Any, w: Any, dy: Any, y: Any, dx: Any, dw: Any) -> list[Callable[[], Any]]:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        tx, tw, tdy = (torch.from_numpy(a.astype(np.float32)).to(dtype) for a in (x, w, dy))
        return [
            lambda: torch.nn.functional.linear(tx, tw),
            lambda: tdy @ tw,
            lambda: tdy.t() @ tx,
        ]

    return products


def _others(kernels: Any, precision: str) -> dict[str, Callable[..., list[Callable[[], Any]]]]:
    """numpy, whose BLAS takes its threads from the environment; PyTorch, and oneDNN beside the own bf16 kernels, where
    they are installed. PyTorch comes first, so that it loads OpenMP with its usual settings (docs/onednn.md).
    """
    found: dict[str, Callable[..., list[Callable[[], Any]]]] = {}
    if precision == "fp32":
        found["numpy"] = _numpy
    with contextlib.suppress(ImportError):
        found["PyTorch"] = _pytorch(precision, kernels.num_threads())
    if precision == "bf16" and kernels.isa in (cython_kernels.AVX512BF16, cython_kernels.AMX):
        with contextlib.suppress(ValueError):
            found["oneDNN"] = _onednn(kernels)
    return found
