"""Products with quantized weights: few rows beside the memory's bandwidth, many rows beside the dense product.

    python docs/benchmarks/quantized.py [--rounds 9] [--threads 1 2] [--cpu-time] [--few]

prints two Markdown tables. Few rows: one row of x, the matrices of a layer and the head of a model's shape as often as it
takes to leave the caches, bytes of the blocks per second beside what `cktrain bench peak` reads at most in the same rounds.
Many rows: time of the fp32 product of the same shape over that of the quantized one, forward and input gradient. Rounds are
interleaved; medians. The dense product stands twice, so that its ratio to itself shows the spread. With --cpu-time seconds
are those of the one thread itself: for a machine that others use, too, whose caches and memory they still share. With --few
the first table is all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from cktrain import cython_kernels
from cktrain.bench.peak import cpu_name
from cktrain.cython_kernels import peak
from cktrain.cython_kernels.block_formats import BLOCK_FORMATS, NOT_INTEGERS
from cktrain.hf.quantize import encode
from cktrain.memory.arena import Arena

FEW = {
    "SmolLM2-135M": [(960, 576), (576, 576), (3072, 576), (576, 1536)],
    "Llama-3.2-1B": [(3072, 2048), (16384, 2048)],
}
"""(O, I) of matrices that writing a token multiplies."""
MANY = {"SmolLM2-135M": (3072, 576), "Llama-3.2-1B": (2048, 2048)}
ROWS = 512
BYTES = 128 << 20
"""Of the weights that a trial of few rows reads, several last-level caches."""


def blocks_of(name: str, rows: int, width: int) -> np.ndarray | None:
    """Random weights in a format; None where its blocks do not fit."""
    found = BLOCK_FORMATS[name]
    if width % found.values:
        return None
    values = np.random.default_rng(0).standard_normal((64, width), np.float32) * np.float32(0.02)
    if name in ("q4_k", "q6_k"):
        blocks = np.random.default_rng(0).integers(0, 256, (64, width // found.values, found.bytes), np.uint8)
        for at in (0, 2) if name == "q4_k" else (208,):
            blocks[..., at : at + 2] = np.array([1e-4], np.float16).view(np.uint8)
        some = blocks.reshape(64, -1)
    elif name in ("bf16", "f16"):
        kind = np.float16
        some = (
            values.astype(kind).view(np.uint8)
            if name == "f16"
            else (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        )
    else:
        some = encode(values, name)
    return np.resize(some, (rows, some.shape[1]))


CLOCKS = {False: time.perf_counter, True: time.thread_time}
"""By whether a thread's own time counts."""


def timed(call: Callable[[], object], own: bool) -> float:
    """Seconds of one call."""
    clock = CLOCKS[own]
    began = clock()
    call()
    return clock() - began


def read_rate(own: bool) -> float:
    """GB/s of reading an array of BYTES once, on the threads in force."""
    array = Arena("bench", BYTES).array((BYTES // 4,), np.dtype(np.float32))
    peak.stream([array], [])  # its pages are there
    return array.nbytes / timed(lambda: peak.stream([], [array]), own) / 1e9


def few(kernels: cython_kernels.KernelSet, model: str, rounds: int, own: bool) -> list[str]:
    """Rows of the first table for the number of threads in force."""
    trials: dict[str, tuple[Callable[[], object], int]] = {}
    for name in BLOCK_FORMATS:
        for q8 in (False, True):
            if q8 and name in NOT_INTEGERS:
                continue
            made = [(blocks_of(name, o, i), o, i) for o, i in FEW[model]]
            if any(w is None for w, _, _ in made):
                continue
            nbytes = sum(w.nbytes for w, _, _ in made if w is not None)
            copies = [
                [
                    (w.copy(), np.ones((1, i), np.float32), np.empty((1, o), np.float32))
                    for w, o, i in made
                    if w is not None
                ]
                for _ in range(-(-BYTES // nbytes))
            ]
            op = kernels.quantized_forward_q8 if q8 else kernels.quantized_forward

            def run(copies=copies, op=op, name=name) -> None:  # type: ignore[no-untyped-def]
                for layer in copies:
                    for w, x, y in layer:
                        op(y, x, w, name)

            trials[f"{name}{', q8 activations' if q8 else ''}"] = run, nbytes * len(copies)
    times: dict[str, list[float]] = defaultdict(list)
    read = []
    for _ in range(rounds):
        read.append(read_rate(own))
        for name, (run, _) in trials.items():
            times[name].append(timed(run, own))
    most = statistics.median(read)
    lines = []
    for name, (_, nbytes) in trials.items():
        rate = nbytes / statistics.median(times[name]) / 1e9
        lines.append(
            f"| {model} | {name} | {kernels.num_threads()} | {rate:.1f} | {most:.1f} | {100 * rate / most:.0f} % |"
        )
    return lines


def many(kernels: cython_kernels.KernelSet, model: str, rounds: int, own: bool) -> list[str]:
    """Rows of the second table."""
    o, i = MANY[model]
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((ROWS, i), np.float32), rng.standard_normal((o, i), np.float32)
    y, dx = np.empty((ROWS, o), np.float32), np.empty_like(x)
    trials: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name in ("dense", "dense again"):
        trials[name] = (
            lambda: kernels.linear_forward(y, x, w),
            lambda: kernels.linear_backward_input(dx, y, w),
        )
    for name in BLOCK_FORMATS:
        blocks = blocks_of(name, o, i)
        if blocks is not None:
            trials[name] = (
                lambda blocks=blocks, name=name: kernels.quantized_forward(y, x, blocks, name),
                lambda blocks=blocks, name=name: kernels.quantized_backward_input(dx, y, blocks, name),
            )
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, calls in trials.items():
            for number, call in enumerate(calls):
                times[name, number].append(timed(call, own))
    lines = []
    for name in trials:
        ratios = []
        for number in (0, 1):
            ratios.append(statistics.median(times["dense", number]) / statistics.median(times[name, number]))
        lines.append(
            f"| {model} {o} x {i} | {name} | {kernels.num_threads()} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    return lines


def main() -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--few", action="store_true")
    options = parser.parse_args()
    own = options.cpu_time
    if own and options.threads != [1]:
        parser.error("--cpu-time is of one thread: give --threads 1")
    kernels = cython_kernels.load()
    print(f"{cpu_name()}, {kernels.isa}, {options.rounds} rounds\n")
    print("| model | format | threads | GB/s | memory reads GB/s | share |\n|---|---|---|---|---|---|")
    for model in FEW:
        for threads in options.threads:
            kernels.set_num_threads(threads)
            print("\n".join(few(kernels, model, options.rounds, own)), flush=True)
    if options.few:
        return
    print(
        f"\n{ROWS} rows of x:\n\n| shape | format | threads | forward | input gradient |\n|---|---|---|---|---|"
    )
    for model in MANY:
        for threads in options.threads:
            kernels.set_num_threads(threads)
            print("\n".join(many(kernels, model, options.rounds, own)), flush=True)


if __name__ == "__main__":
    main()
