"""What `cktrain bench ops` runs: each op on arrays of its own, and PyTorch's way to the same result.

Shapes: N rows of C elements; attention B, T, H, D.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cktrain.bench.peak import last_level_cache_bytes
from cktrain.cython_kernels.ops import OPS
from cktrain.memory.arena import Arena
from cktrain.nn.numerics import PRECISIONS

C = 768
VOCABULARY = 32000
ATTENTION = ((1, 2048, 12, 64), (4, 512, 12, 64), (1, 768, 8, 24))
"""(B, T, H, D): a long sequence, the reference model, a small odd one."""


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
    baseline: Callable[[], Any] | None = None
    reads: tuple[np.ndarray, ...] = ()
    writes: tuple[np.ndarray, ...] = ()
    updates: tuple[np.ndarray, ...] = ()

    def clear(self) -> None:
        """Give what was written usual values again: a loop that only moves memory leaves any bits."""
        for array in (*self.writes, *self.updates):
            array.fill(0.5)


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
    def baseline(a: Any) -> Any:
        return w.torch.nn.functional.gelu(a, approximate="tanh" if tanh else "none")

    k, form, one = w.kernels, "_tanh" * tanh, x.nbytes
    yield Trial(
        f"gelu_forward{form}",
        lambda m: partial(k.gelu_forward, y[:m], x[:m], tanh),
        len(x),
        2 * one,
        (1, 1, 0),
        0,
        w.value(baseline, x),
        (x,),
        (y,),
    )
    backward = w.gradient(baseline, y, x)
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
    baseline = None
    if w.torch:
        tensor = w.tensor(param).clone().requires_grad_()
        tensor.grad = w.tensor(grad)
        baseline = w.torch.optim.AdamW([tensor], lr=1e-6, weight_decay=0.1, fused=True).step
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
        baseline,
        (grad,),
        (),
        (param, m, v),
    )
    blocks = -(-n // 256)
    m_bytes, v_bytes = (np.full(n, byte, np.uint8) for byte in (127, 0))
    m_scale, v_scale = (np.zeros(blocks, np.float32) for _ in "mv")

    def adamw_8bit(j: int) -> Callable[[], Any]:
        scales = slice(0, -(-j // 256))
        moments = m_bytes[:j], m_scale[scales], v_bytes[:j], v_scale[scales]
        rounded = None if copy is None else copy[:j]
        return partial(k.adamw_8bit_step, param[:j], *moments, grad[:j], *settings, copy=rounded)

    yield Trial("adamw_8bit_step", adamw_8bit, n, 16 * n + 16 * blocks + extra, (1, 0, 1))
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

    baselines: list[Any] = [None, None, None]
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

        baselines = [torch_forward, torch_backward, torch_both]
    row = OPS["attention_forward"]
    flops = row.flops_of(row.sizes({"q": q, "k": key}))
    for name, run, factor, baseline in zip(
        ("attention_forward", "attention_backward", "attention_both"),
        (forward, backward, both),
        (1.0, 2.5, 3.5),
        baselines,
        strict=True,
    ):
        yield Trial(name, _at_any_size(run), flops=int(flops * factor), baseline=baseline)


def _at_any_size(run: Callable[[], Any]) -> Callable[[int], Callable[[], Any]]:
    """The call of a trial whose rows are not varied."""
    return lambda _: run
