"""`cktrain bench ops`: every op but the matmuls beside its limit, and beside PyTorch where that is installed.

Ops that move memory run on arrays of four times the last-level cache. Two things bound them: the bandwidth of a loop
that reads and writes as many arrays (csrc/peak.h), with plain or streaming stores, whichever is faster; and their own
arithmetic, which is the op's rate on operands that fit the second-level cache. The lower one is the limit; the share
of the bandwidth is printed beside it. Attention's limit is the measured multiply-add rate of its precision.

Op, limit and rival take turns in one process and the best round of each counts, so that a disturbance from outside
hits all three; before a round the library's threads, which spin for a while, are waited for.

Shapes: N rows of C elements; attention B, T, H, D.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from cktrain.bench.peak import last_level_cache_bytes, measure_flops, settle
from cktrain.bench.profile import attention_flops
from cktrain.nn.memory import Arena
from cktrain.nn.numerics import PRECISIONS

C = 768
VOCABULARY = 32000
ATTENTION = ((1, 2048, 12, 64), (4, 512, 12, 64), (1, 768, 8, 24))
"""(B, T, H, D): the issue's long sequence, the reference model, a small odd one."""


@dataclass(frozen=True)
class Trial:
    """An op on its arrays. `streams`: arrays of equal bytes only read, only written, and updated in place.

    `reads`, `writes` and `updates` are these arrays, which may hold several of equal bytes each; none where the op's own
    differ from its mix.
    """

    op: str
    call: Callable[[int], Callable[[], Any]]
    """The op on the first so many rows (elements, where it knows none)."""
    rows: int = 0
    nbytes: int = 0
    """Of all rows."""
    streams: tuple[int, int, int] = (0, 0, 0)
    flops: int = 0
    rival: Callable[[], Any] | None = None
    reads: tuple[np.ndarray, ...] = ()
    writes: tuple[np.ndarray, ...] = ()
    updates: tuple[np.ndarray, ...] = ()

    def clear(self) -> None:
        """Give what was written usual values again: a loop that only moves memory leaves any bits."""
        for array in (*self.writes, *self.updates):
            array.fill(0.5)


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


class Workbench:
    """Arrays for the trials of one precision, all from one arena that each trial starts anew."""

    def __init__(self, kernels: Any, precision: str, cache_bytes: int | None = None) -> None:
        self.kernels = kernels
        self.precision = precision
        self.real = np.dtype(PRECISIONS[precision][0])
        self.operand_bytes = 4 * (cache_bytes or last_level_cache_bytes())
        self.rng = np.random.default_rng(0)
        self.torch: Any = importlib.import_module("torch") if importlib.util.find_spec("torch") else None
        self._arenas: list[Arena] = []

    def array(self, shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        """Values in [-1, 1), a repeated block of random ones."""
        dtype = np.dtype(self.real if dtype is None else dtype)
        size = int(np.prod(shape))
        arena = Arena("bench", size * dtype.itemsize + 64)
        self._arenas.append(arena)
        flat = arena.array((size,), dtype)
        block = self.rng.uniform(-1, 1, min(size, 100_003)).astype(dtype)
        for start in range(0, size, block.size):
            flat[start : start + block.size] = block[: size - start]
        return flat.reshape(shape)

    def rows(self, width: int = C, itemsize: int | None = None) -> int:
        """How many rows of `width` elements make one operand."""
        return max(1, self.operand_bytes // (width * (itemsize or self.real.itemsize)))

    def tensor(self, array: np.ndarray, grad: bool = False) -> Any:
        """The same memory as a torch tensor."""
        torch = self.torch
        if array.dtype == np.dtype(PRECISIONS["bf16"][0]):
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        return tensor.requires_grad_() if grad else tensor

    def gradient(
        self, f: Callable[..., Any], dy: np.ndarray, *inputs: np.ndarray
    ) -> Callable[[], Any] | None:
        """torch's backward of y = f(inputs), whose forward is computed once."""
        if self.torch is None:
            return None
        tensors = [self.tensor(x, grad=x.dtype != np.int32) for x in inputs]
        y, cotangent = f(*tensors), self.tensor(dy)
        return lambda: self.torch.autograd.grad(y, tensors, cotangent, retain_graph=True)

    def value(self, f: Callable[..., Any], *inputs: np.ndarray) -> Callable[[], Any] | None:
        """torch's f(inputs), without a graph."""
        if self.torch is None:
            return None
        tensors = [self.tensor(x) for x in inputs]

        def run() -> Any:
            with self.torch.no_grad():
                return f(*tensors)

        return run

    def release(self) -> None:
        """Give the arrays back; no trial may be used after."""
        self._arenas.clear()


def memory_trials(w: Workbench) -> Iterator[Trial]:
    """The memory-bound ops, one after the other; each trial's arrays are released by the next."""
    for build in (_norms, _pointwise, _rope, _cross_entropy, _embedding, _optimizer):
        yield from build(w)
        w.release()


def _norms(w: Workbench) -> Iterator[Trial]:
    k, n = w.kernels, w.rows()
    f = w.torch and w.torch.nn.functional
    x, y, dx = (w.array((n, C)) for _ in range(3))
    scale, bias, rstd, mean = (
        w.array((C,), np.float32),
        w.array((C,), np.float32),
        *(w.array((n,), np.float32) for _ in "rm"),
    )
    dscale, dbias = np.zeros(C, np.float32), np.zeros(C, np.float32)
    in_real = scale.astype(w.real), bias.astype(w.real)
    one = x.nbytes
    yield Trial(
        "rms_norm_forward",
        lambda m: partial(k.rms_norm_forward, y[:m], rstd[:m], x[:m], scale, 1e-5),
        n,
        2 * one,
        (1, 1, 0),
        0,
        w.value(lambda a, b: f.rms_norm(a, (C,), b, 1e-5), x, in_real[0]),
        (x,),
        (y,),
    )
    yield Trial(
        "rms_norm_backward",
        lambda m: partial(k.rms_norm_backward, dx[:m], dscale, y[:m], x[:m], scale, rstd[:m], True),
        n,
        4 * one,
        (2, 0, 1),
        0,
        w.gradient(lambda a, b: f.rms_norm(a, (C,), b, 1e-5), y, x, in_real[0]),
        (y, x),
        (),
        (dx,),
    )
    yield Trial(
        "layer_norm_forward",
        lambda m: partial(k.layer_norm_forward, y[:m], mean[:m], rstd[:m], x[:m], scale, bias, 1e-5),
        n,
        2 * one,
        (1, 1, 0),
        0,
        w.value(lambda a, b, c: f.layer_norm(a, (C,), b, c), x, *in_real),
        (x,),
        (y,),
    )
    yield Trial(
        "layer_norm_backward",
        lambda m: partial(
            k.layer_norm_backward, dx[:m], dscale, dbias, y[:m], x[:m], scale, mean[:m], rstd[:m], True
        ),
        n,
        4 * one,
        (2, 0, 1),
        0,
        w.gradient(lambda a, b, c: f.layer_norm(a, (C,), b, c), y, x, *in_real),
        (y, x),
        (),
        (dx,),
    )


def _pointwise(w: Workbench) -> Iterator[Trial]:
    k, n = w.kernels, w.rows()
    f = w.torch and w.torch.nn.functional
    x, y, gate_up = w.array((n, C)), w.array((n, C)), w.array((n, 2 * C))
    dgate_up = w.array((n, 2 * C))
    one = x.nbytes

    def swiglu(a: Any) -> Any:
        return f.silu(a[:, :C]) * a[:, C:]

    yield Trial(
        "swiglu_forward",
        lambda m: partial(k.swiglu_forward, y[:m], gate_up[:m]),
        n,
        3 * one,
        (2, 1, 0),
        0,
        w.value(swiglu, gate_up),
        (gate_up,),
        (y,),
    )
    yield Trial(
        "swiglu_backward",
        lambda m: partial(k.swiglu_backward, dgate_up[:m], x[:m], gate_up[:m], y[:m]),
        n,
        6 * one,
        (3, 3, 0),
        0,
        w.gradient(swiglu, x, gate_up),
        (x, gate_up),
        (dgate_up, y),
    )
    yield from _gelu(w, x, y, False)
    yield from _gelu(w, x, y, True)
    out = dgate_up.reshape(-1)[: n * C].reshape(n, C)
    total = w.value(lambda b, c, a: w.torch.add(b, c, out=a), x, y, out)
    add = lambda m: partial(k.add, out[:m], x[:m], y[:m])  # noqa: E731
    yield Trial("add", add, n, 3 * one, (2, 1, 0), 0, total, (x, y), (out,))


def _gelu(w: Workbench, x: np.ndarray, y: np.ndarray, tanh: bool) -> Iterator[Trial]:
    def rival(a: Any) -> Any:
        return w.torch.nn.functional.gelu(a, approximate="tanh" if tanh else "none")

    k, form, one = w.kernels, "_tanh" * tanh, x.nbytes
    yield Trial(
        f"gelu_forward{form}",
        lambda m: partial(k.gelu_forward, y[:m], x[:m], tanh),
        len(x),
        2 * one,
        (1, 1, 0),
        0,
        w.value(rival, x),
        (x,),
        (y,),
    )
    backward = w.gradient(rival, y, x)
    yield Trial(
        f"gelu_backward{form}",
        lambda m: partial(k.gelu_backward, y[:m], y[:m], x[:m], tanh),
        len(x),
        3 * one,
        (1, 0, 1),
        0,
        backward,
        (x,),
        (),
        (y,),
    )


def _rope(w: Workbench) -> Iterator[Trial]:
    n = w.rows()
    q = w.array((n, C // 64, 64))
    cos, sin = w.array((2048, 32), np.float32), w.array((2048, 32), np.float32)
    positions = np.arange(n, dtype=np.int32) % 2048
    yield Trial(
        "rope_forward",
        lambda m: partial(w.kernels.rope_forward, q[:m], q[:m], cos, sin, positions[:m]),
        n,
        2 * q.nbytes,
        (0, 0, 1),
        updates=(q,),
    )


def _cross_entropy(w: Workbench) -> Iterator[Trial]:
    k, n = w.kernels, w.rows(VOCABULARY, 4)
    logits = w.array((n, VOCABULARY), np.float32)
    dlogits = logits if w.precision == "fp32" else w.array((n, VOCABULARY))
    targets = w.rng.integers(0, VOCABULARY, n).astype(np.int32)
    row_max, row_sum, target = (np.zeros(n, np.float32) for _ in range(3))
    yield Trial(
        "cross_entropy_forward",
        lambda m: partial(
            k.cross_entropy_forward, row_max[:m], row_sum[:m], target[:m], logits[:m], targets[:m]
        ),
        n,
        logits.nbytes,
        (1, 0, 0),
        0,
        w.value(lambda a: w.torch.logsumexp(a, 1), logits),
        (logits,),
    )
    lse = np.full(n, 11.0, np.float32)
    in_place = dlogits is logits
    yield Trial(
        "cross_entropy_backward",
        lambda m: partial(k.cross_entropy_backward, dlogits[:m], logits[:m], lse[:m], targets[:m]),
        n,
        logits.nbytes + dlogits.nbytes,
        (0, 0, 1) if in_place else (2, 1, 0),
        reads=() if in_place else (logits,),
        writes=() if in_place else (dlogits,),
        updates=(logits,) if in_place else (),
    )


def _embedding(w: Workbench) -> Iterator[Trial]:
    k, n = w.kernels, w.rows()
    table, y = w.array((VOCABULARY, C)), w.array((n, C))
    dtable = w.array((VOCABULARY, C), np.float32)
    ids = w.rng.permutation(np.arange(n, dtype=np.int32) % VOCABULARY)
    yield Trial(
        "embedding_forward",
        lambda m: partial(k.embedding_forward, y[:m], ids[:m], table),
        n,
        2 * y.nbytes,
        (1, 1, 0),
        0,
        w.value(lambda a, i: w.torch.nn.functional.embedding(i, a), table, ids),
    )
    f32 = 4 * y.size
    mix = (1, 0, 1) if w.precision == "fp32" else (1, 0, 2)
    yield Trial(
        "embedding_backward",
        lambda m: partial(k.embedding_backward, dtable, y[:m], ids[:m]),
        n,
        y.nbytes + 2 * f32,
        mix,
    )


def _optimizer(w: Workbench) -> Iterator[Trial]:
    k, n = w.kernels, w.operand_bytes // 4
    param, m, v, grad = (w.array((n,), np.float32) for _ in range(4))
    np.abs(v, out=v)
    copy = None if w.precision == "fp32" else w.array((n,))
    extra = 0 if copy is None else copy.nbytes
    settings = (1e-6, 0.9, 0.95, 1e-8, 0.1, 3, 1.0)
    rival = None
    if w.torch:
        tensor = w.tensor(param).clone().requires_grad_()
        tensor.grad = w.tensor(grad)
        rival = w.torch.optim.AdamW([tensor], lr=1e-6, weight_decay=0.1, fused=True).step
    yield Trial(
        "adamw_step",
        lambda j: partial(
            k.adamw_step,
            param[:j],
            m[:j],
            v[:j],
            grad[:j],
            *settings,
            copy=None if copy is None else copy[:j],
        ),
        n,
        28 * n + extra,
        (1, 0, 3),
        0,
        rival,
        (grad,),
        (),
        (param, m, v),
    )
    squares = lambda m: partial(k.sum_of_squares, grad[:m])  # noqa: E731
    yield Trial("sum_of_squares", squares, n, 4 * n, (1, 0, 0), reads=(grad,))
    if copy is not None:
        rounded = w.value(lambda a, b: a.copy_(b), copy, grad)
        down, up = (
            (lambda m: partial(k.cast, copy[:m], grad[:m])),
            (lambda m: partial(k.cast, grad[:m], copy[:m])),
        )
        yield Trial("cast_to_bf16", down, n, 6 * n, (2, 1, 0), 0, rounded, (grad,), (copy,))
        yield Trial("cast_to_f32", up, n, 6 * n, (1, 2, 0), 0, None, (copy,), (grad,))


def attention_trials(w: Workbench) -> Iterator[tuple[str, Trial]]:
    """Forward, backward and both, for each shape; q, k, v are views of one fused array as in the model."""
    for b, t, h, d in ATTENTION:
        yield from ((f"B={b} T={t} H={h} D={d}", trial) for trial in _attention(w, b, t, h, d))
        w.release()


def _attention(w: Workbench, b: int, t: int, h: int, d: int) -> Iterator[Trial]:
    k = w.kernels
    qkv, dqkv = w.array((b, t, 3 * h, d)), w.array((b, t, 3 * h, d))
    q, key, v = qkv[:, :, :h], qkv[:, :, h : 2 * h], qkv[:, :, 2 * h :]
    dq, dk, dv = dqkv[:, :, :h], dqkv[:, :, h : 2 * h], dqkv[:, :, 2 * h :]
    o, do = w.array((b, t, h, d)), w.array((b, t, h, d))
    lse, delta = w.array((b, h, t), np.float32), w.array((b, h, t), np.float32)
    scale = d**-0.5

    def forward() -> None:
        k.attention_forward(o, lse, q, key, v, scale)

    def backward() -> None:
        k.attention_backward(dq, dk, dv, delta, do, q, key, v, o, lse, scale)

    def both() -> None:
        forward()
        backward()

    rivals: list[Any] = [None, None, None]
    if w.torch:
        sdpa = w.torch.nn.functional.scaled_dot_product_attention
        tensors = [w.tensor(np.ascontiguousarray(x.transpose(0, 2, 1, 3)), grad=True) for x in (q, key, v)]
        cotangent = w.tensor(np.ascontiguousarray(do.transpose(0, 2, 1, 3)))
        graph: list[Any] = []

        def torch_forward() -> None:
            graph[:] = [sdpa(*tensors, is_causal=True)]

        def torch_backward() -> None:
            w.torch.autograd.grad(graph[0], tensors, cotangent, retain_graph=True)

        def torch_both() -> None:
            torch_forward()
            torch_backward()

        rivals = [torch_forward, torch_backward, torch_both]
    flops = attention_flops(q, key)
    for name, run, factor, rival in zip(
        ("attention_forward", "attention_backward", "attention_both"),
        (forward, backward, both),
        (1.0, 2.5, 3.5),
        rivals,
        strict=True,
    ):
        yield Trial(name, _at_any_size(run), flops=int(flops * factor), rival=rival)


def _at_any_size(run: Callable[[], Any]) -> Callable[[int], Callable[[], Any]]:
    """The call of a trial whose rows are not varied."""
    return lambda _: run


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
            seconds, rival = _best(kernels, [trial.call(0), trial.rival], 3 * rounds)
            peak = max(peak, measure_flops(kernels, precision, 0.1))
            rate = trial.flops / seconds
            yield _result(trial, shape, w, seconds, rival, "multiply-adds", peak, gflops=rate / 1e9)
    streams = _Streams(w.operand_bytes)
    for trial in memory_trials(w):
        if _wanted(trial, names):
            inputs, out = streams.arrays(trial)
            plain, streaming = (partial(streams.run, inputs, out, past) for past in (False, True))
            few, few_bytes = _in_cache(trial, threads)
            runs = [trial.call(trial.rows), few, plain, streaming, trial.rival]
            seconds, few_seconds, *limits, rival = _best(kernels, runs, rounds, trial.clear)
            streamed = (inputs or out)[0].nbytes * (len(inputs) + len(out))
            stream, in_cache = streamed / min(limits), few_bytes / few_seconds
            yield _result(
                trial,
                "",
                w,
                seconds,
                rival,
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
    rival: float | None,
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
        rival,
        None if rival is None else rival / seconds,
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
        rival = "" if r.vs_torch is None else f"{r.vs_torch:.2f}"
        share = f"{100 * r.gbs / r.stream:.0f}" if r.gbs and r.stream else ""
        lines.append(
            f"{r.op:<22}{r.shape:<20}{r.precision:<6}{r.s * 1e3:>9.3f}{flops:>9}{bandwidth:>7}{stream:>8}{share:>6}"
            f"{in_cache:>10}{r.bound:>15}{100 * r.roofline:>9.1f}{rival:>11}"
        )
    return "\n".join(lines)


def ops_json(results: list[OpResult]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(r) for r in results]
