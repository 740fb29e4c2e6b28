"""`cktrain bench ops`: every op but the matmuls beside its limit, and beside PyTorch where that is installed.

Ops that move memory run on arrays of four times the last-level cache. Two things bound them: the bandwidth of a loop
that reads and writes as many arrays (csrc/peak.h), with plain or streaming stores, whichever is faster; and their own
arithmetic, which is the op's rate on operands that fit the second-level cache. The lower one is the limit; the share
of the bandwidth is printed beside it. Attention's limit is the measured multiply-add rate of its precision.

Op, limit and baseline take turns in one process and the best round of each counts, so that a disturbance from outside
hits all three; before a round the library's threads, which spin for a while, are waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from cktrain.bench.op_cases import Trial, Workbench, attention_trials, memory_trials
from cktrain.bench.peak import measure_flops, settle
from cktrain.memory.arena import Arena


@dataclass(frozen=True)
class OpResult:
    """A line of the report, rates in GB/s or GFLOP/s.

    `limit` is the least of what bounds the op, which `bound` names, and `roofline` the part of it that was reached.
    For an op that moves memory, `stream` is the bandwidth of its mix of reads and writes, and `in_cache` the op's own
    rate on operands that fit the second-level cache: what its arithmetic allows.
    """

    op: str
    shape: str
    precision: str
    threads: int
    s: float
    gflops: float | None
    gbs: float | None
    bound: str
    limit: float
    roofline: float
    stream: float | None
    in_cache: float | None
    torch_s: float | None
    vs_torch: float | None


def bench_ops(
    kernels: Any, precision: str, names: tuple[str, ...] = (), rounds: int = 5
) -> Iterator[OpResult]:
    """A result per op whose name contains one of `names` (all when empty), on the kernel set's threads."""
    w, threads = Workbench(kernels, precision), kernels.num_threads()
    if w.torch:
        w.torch.set_num_threads(threads)
    peak = measure_flops(kernels, precision)
    for shape, trial in attention_trials(w):
        if _wanted(trial, names):
            seconds, baseline = _best(kernels, [trial.call(0), trial.baseline], 3 * rounds)
            peak = max(peak, measure_flops(kernels, precision, 0.1))
            rate = trial.flops / seconds
            yield _result(trial, shape, w, seconds, baseline, "multiply-adds", peak, gflops=rate / 1e9)
    streams = _Streams(w.operand_bytes)
    for trial in memory_trials(w):
        if _wanted(trial, names):
            inputs, out = streams.arrays(trial)
            plain, streaming = (partial(streams.run, inputs, out, past) for past in (False, True))
            few, few_bytes = _in_cache(trial, threads)
            runs: list[Callable[[], Any] | None] = [
                trial.call(trial.rows),
                few,
                plain,
                streaming,
                trial.baseline,
            ]
            seconds, few_seconds, *limits, baseline = _best(kernels, runs, rounds, trial.clear)
            streamed = (inputs or out)[0].nbytes * (len(inputs) + len(out))
            stream, in_cache = streamed / min(limits), few_bytes / few_seconds
            yield _result(
                trial,
                "",
                w,
                seconds,
                baseline,
                "memory" if stream <= in_cache else "arithmetic",
                min(stream, in_cache),
                gbs=trial.nbytes / seconds / 1e9,
                stream=stream / 1e9,
                in_cache=in_cache / 1e9,
            )


def _in_cache(trial: Trial, threads: int) -> tuple[Callable[[], None], float]:
    """Many calls on as many rows as fit half of the second-level caches, and the bytes of all of them."""
    from cktrain.cython_kernels import _runtime

    fitting = threads * _runtime.caches()[1] // 2
    rows = max(1, min(trial.rows, trial.rows * fitting // trial.nbytes))
    call, calls = trial.call(rows), 100

    def run() -> None:
        for _ in range(calls):
            call()

    return run, calls * trial.nbytes * rows / trial.rows


class _Streams:
    """The loops that only move memory, of up to four arrays read and four written.

    They run on the op's own arrays: on some machines the bandwidth depends on where in memory an array lies.
    """

    def __init__(self, operand_bytes: int) -> None:
        from cktrain.cython_kernels import peak

        self._stream = peak.stream
        n = operand_bytes // 4 // 1024 * 1024
        self._arrays = []
        for _ in range(6):
            self._arrays.append(Arena("bandwidth", 4 * n).array((n,), np.dtype(np.float32)))
        for array in self._arrays:
            self._stream([array], [array])  # its pages are there, by the threads that use them

    def arrays(self, trial: Trial) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What is read and what is written, all of the same length, in the trial's mix; updated arrays are in both."""
        given = (*trial.reads, *trial.writes, *trial.updates)
        n_reads, n_writes, n_updates = trial.streams
        if given:
            nbytes = min(array.nbytes for array in given) // 4096 * 4096
            reads, writes, updates = (
                [piece for array in arrays for piece in _pieces(array, nbytes)]
                for arrays in (trial.reads, trial.writes, trial.updates)
            )
        else:
            reads, writes = self._arrays[:n_reads], self._arrays[n_reads : n_reads + n_writes]
            updates = self._arrays[n_reads + n_writes : n_reads + n_writes + n_updates]
        assert (len(reads), len(writes), len(updates)) == trial.streams, trial.op
        return reads + updates, updates + writes

    def run(self, inputs: list[np.ndarray], out: list[np.ndarray], streaming: bool) -> None:
        """Every array of `out` = the sum of `inputs`."""
        self._stream(out, inputs, streaming)


def _pieces(array: np.ndarray, nbytes: int) -> list[np.ndarray]:
    """As many fp32 arrays of so many bytes as lie in an array, one after the other."""
    flat = array.reshape(-1).view(np.uint8)
    return [
        flat[start : start + nbytes].view(np.float32) for start in range(0, array.nbytes - nbytes + 1, nbytes)
    ]


def _wanted(trial: Trial, names: tuple[str, ...]) -> bool:
    return not names or any(name in trial.op for name in names)


def _best(
    kernels: Any,
    runs: list[Callable[[], Any] | None],
    rounds: int,
    after_round: Callable[[], None] = lambda: None,
) -> list[Any]:
    """The least seconds of each, taking turns; None for what is None. The last one is another library's.

    One thread is timed by its own clock, which stands still while others have the core.
    """
    alone = kernels.num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    best = [float("inf")] * len(runs)
    for _ in range(rounds + 1):  # the first touches what is new
        if not alone and runs[-1] is not None:
            settle(kernels)
        for i, run in enumerate(runs):
            if run is not None:
                began = clock()
                run()
                best[i] = min(best[i], clock() - began)
        after_round()
    return [None if run is None else seconds for run, seconds in zip(runs, best, strict=True)]


def _result(
    trial: Trial,
    shape: str,
    w: Workbench,
    seconds: float,
    baseline: float | None,
    bound: str,
    limit: float,
    **rates: float,
) -> OpResult:
    reached = (trial.flops or trial.nbytes) / seconds
    return OpResult(
        trial.op,
        shape,
        w.precision,
        w.kernels.num_threads(),
        seconds,
        rates.get("gflops"),
        rates.get("gbs"),
        bound,
        limit / 1e9,
        reached / limit,
        rates.get("stream"),
        rates.get("in_cache"),
        baseline,
        None if baseline is None else baseline / seconds,
    )


def ops_table(results: list[OpResult]) -> str:
    """Lines for people; "% stream" is the part of the bandwidth, whatever the bound."""
    lines = [
        f"{'op':<22}{'shape':<20}{'type':<6}{'ms':>9}{'GFLOP/s':>9}{'GB/s':>7}{'stream':>8}{'%':>6}{'in cache':>10}"
        f"{'bound':>15}{'% of it':>9}{'x PyTorch':>11}"
    ]
    for r in results:
        flops, bandwidth, stream, in_cache = (
            f"{x:.1f}" if x is not None else "" for x in (r.gflops, r.gbs, r.stream, r.in_cache)
        )
        baseline = "" if r.vs_torch is None else f"{r.vs_torch:.2f}"
        share = f"{100 * r.gbs / r.stream:.0f}" if r.gbs and r.stream else ""
        lines.append(
            f"{r.op:<22}{r.shape:<20}{r.precision:<6}{r.s * 1e3:>9.3f}{flops:>9}{bandwidth:>7}{stream:>8}{share:>6}"
            f"{in_cache:>10}{r.bound:>15}{100 * r.roofline:>9.1f}{baseline:>11}"
        )
    return "\n".join(lines)


def ops_json(results: list[OpResult]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(r) for r in results]
