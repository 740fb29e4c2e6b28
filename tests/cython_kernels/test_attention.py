"""Attention's options where the answer is known: rows without keys, parts and their merging, options that say nothing."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cases import CASES
from ml_dtypes import bfloat16

from cktrain import cython_kernels

LEAST = np.finfo(np.float32).min
B, S, T, K, H, D = 2, 70, 130, 2, 6, 16


@pytest.fixture(params=cython_kernels.available())
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The reference and each compiled set, put back to one thread at the end."""
    kernels = cython_kernels.load(request.param)
    yield kernels
    kernels.set_num_threads(1)


class Call:
    """Forward and backward of one call; every output is a fresh array of NaN."""

    def __init__(self, kernels: Any, dtype: Any = np.float32, s: int = S, t: int = T) -> None:
        self.kernels = kernels
        rng = np.random.default_rng(0)
        self.q, self.do = (rng.standard_normal((B, s, H, D)).astype(dtype) for _ in range(2))
        self.k, self.v = (rng.standard_normal((B, t, K, D)).astype(dtype) for _ in range(2))
        self.o, self.dq = (np.full(self.q.shape, np.nan, dtype) for _ in range(2))
        self.dk, self.dv = (np.full(self.k.shape, np.nan, dtype) for _ in range(2))
        self.lse, self.delta = (np.full((B, H, s), np.nan, np.float32) for _ in range(2))

    def forward(self, **options: Any) -> "Call":
        self.kernels.attention_forward(self.o, self.lse, self.q, self.k, self.v, 0.25, **options)
        return self

    def backward(self, **options: Any) -> "Call":
        self.kernels.attention_backward(
            self.dq,
            self.dk,
            self.dv,
            self.delta,
            self.do,
            self.q,
            self.k,
            self.v,
            self.o,
            self.lse,
            0.25,
            **options,
        )
        return self

    def outputs(self) -> list[Any]:
        return [self.o, self.lse, self.dq, self.dk, self.dv, self.delta]


def close(got: Any, want: Any, tolerance: float = 1e-5) -> bool:
    """To some hundred roundings of fp32, of numbers around 1."""
    return bool(np.abs(got - want).max() <= tolerance)


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_without_keys_is_nothing(kernels: Any, dtype: Any, threads: int) -> None:
    """Exactly: o = 0, lse = -Inf, dq = 0, and the keys get what they get without the row."""
    kernels.set_num_threads(threads)
    empty = np.zeros((B, S), bool)
    empty[0, 3:7] = empty[1, 60:] = empty[:, 0] = True
    end = np.where(empty, 0, T).astype(np.int32)
    options = {"end": end, "causal": False}
    call = Call(kernels, dtype).forward(**options).backward(**options)
    assert not call.o[empty].any() and not call.dq[empty].any()
    assert np.isneginf(call.lse.transpose(0, 2, 1)[empty]).all()
    assert np.isfinite(call.lse.transpose(0, 2, 1)[~empty]).all()
    assert all(np.isfinite(x.astype(np.float32)).all() for x in (call.o, call.dq, call.dk, call.dv))
    other = Call(kernels, dtype)
    other.do[...] = call.do
    other.do[empty] = 1e4  # a gradient that meets no key
    other.forward(**options).backward(**options)
    assert np.array_equal(other.dk, call.dk) and np.array_equal(other.dv, call.dv)


@pytest.mark.parametrize("hidden", [-np.inf, LEAST], ids=["inf", "least"])
@pytest.mark.parametrize("axes", [(1, 1), (H, S)], ids=["keys", "rows"])
def test_a_bias_hides_keys_and_rows(kernels: Any, hidden: float, axes: tuple[int, int]) -> None:
    """A mask as other libraries write it does what first and end do; its gradient is 0 there."""
    bias = np.zeros((B, *axes, T), np.float32)
    bias[..., 90:] = hidden
    bias[1] = hidden  # a whole sequence
    end = np.full((B, S), 90, np.int32)
    end[1] = 0
    masked, ranged, dbias = Call(kernels), Call(kernels), np.zeros_like(bias)
    masked.forward(bias=bias, causal=False).backward(bias=bias, dbias=dbias, causal=False)
    ranged.forward(end=end, causal=False).backward(end=end, causal=False)
    for got, want in zip(masked.outputs(), ranged.outputs(), strict=True):
        assert np.array_equal(np.isneginf(got), np.isneginf(want))
        assert close(*(np.where(np.isneginf(x), 0.0, x) for x in (got, want)))
    assert not dbias[..., 90:].any() and not dbias[1].any() and dbias[0, ..., :90].any()
    assert not masked.o[1].any() and not masked.dq[1].any() and not masked.dk[:, 90:].any()


def test_a_row_without_keys_has_its_sink(kernels: Any) -> None:
    sinks, dsinks = np.linspace(-2, 3, H, dtype=np.float32), np.zeros(H, np.float32)
    sinks[1] = -np.inf  # none
    options = {"end": np.zeros((B, S), np.int32), "causal": False, "sinks": sinks}
    call = Call(kernels).forward(**options).backward(**options, dsinks=dsinks)
    assert np.array_equal(call.lse, np.broadcast_to(sinks[None, :, None], call.lse.shape))
    assert not any(x.any() for x in (call.o, call.dq, call.dk, call.dv, dsinks))


def test_no_queries_and_no_keys(kernels: Any) -> None:
    nobody = Call(kernels, s=0).forward(causal=False).backward(causal=False)
    assert not nobody.dk.any() and not nobody.dv.any()
    nothing = Call(kernels, t=0).forward(causal=False).backward(causal=False)
    assert not nothing.o.any() and not nothing.dq.any() and np.isneginf(nothing.lse).all()


@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
def test_options_that_say_nothing_change_no_bit(kernels: Any, dtype: Any) -> None:
    plain = Call(kernels, dtype).forward().backward()
    end = np.full((B, S), T, np.int32)
    first, none = np.zeros((B, S), np.int32), np.full(H, -np.inf, np.float32)
    for options in (
        {"first": first, "end": end},
        {"sinks": none},
        {"window": T},
        {"causal": False, "end": np.broadcast_to(np.arange(T - S + 1, T + 1, dtype=np.int32), (B, S)).copy()},
    ):
        told = Call(kernels, dtype).forward(**options).backward(**options)
        for got, want in zip(told.outputs(), plain.outputs(), strict=True):
            assert np.array_equal(got, want), options.keys()


@pytest.mark.parametrize("sinks", [False, True])
def test_parts_of_the_keys_merge_to_the_whole(kernels: Any, sinks: bool) -> None:
    """Keys in three parts, causal by ranges, one of them with the sink; each part's gradients from the merged o and lse."""
    rng = np.random.default_rng(1)
    logits = {"sinks": rng.standard_normal(H).astype(np.float32)} if sinks else {}
    seen = np.broadcast_to(np.arange(T - S + 1, T + 1), (B, S))
    dsinks = {"dsinks": np.zeros(H, np.float32)} if sinks else {}
    whole = Call(kernels).forward(**logits).backward(**logits, **dsinks)
    cuts = (0, 50, 128, T)  # most rows see nothing of the last part
    parts = []
    for begin, end in pairwise(cuts):
        part = Call(kernels)
        part.k, part.v = part.k[:, begin:end], part.v[:, begin:end]
        part.dk, part.dv = part.dk[:, begin:end], part.dv[:, begin:end]
        options: dict[str, Any] = {"causal": False, "softcap": 0.0}
        options["end"] = np.clip(seen - begin, 0, end - begin).astype(np.int32)
        parts.append((part, options | (logits if end == T else {})))
        part.forward(**parts[-1][1])
    o, lse = np.zeros_like(whole.o), np.full_like(whole.lse, -np.inf)
    for part, _ in parts:
        kernels.attention_merge(o, lse, part.o, part.lse)
    assert close(o, whole.o) and close(lse, whole.lse)
    dq, dsinks_of_parts = np.zeros_like(o), np.zeros(H, np.float32)
    for part, options in parts:
        part.o, part.lse = o, lse
        part.backward(**options, **({"dsinks": dsinks_of_parts} if "sinks" in options else {}))
        dq += part.dq
    assert close(dq, whole.dq)
    assert close(np.concatenate([part.dk for part, _ in parts], axis=1), whole.dk)
    assert close(np.concatenate([part.dv for part, _ in parts], axis=1), whole.dv)
    if sinks:
        assert np.abs(dsinks_of_parts - dsinks["dsinks"]).max() <= 1e-5 * np.abs(dsinks["dsinks"]).max()


def test_parts_of_bf16_are_summed_in_fp32(kernels: Any) -> None:
    """Sixteen merges round once each part, not the sum sixteen times: 2^-9 of a number is a rounding of bf16."""
    whole = Call(kernels).forward(causal=False)
    o, lse = np.zeros(whole.o.shape, np.float32), np.full_like(whole.lse, -np.inf)
    for begin in range(0, T, T // 16):
        part = Call(kernels, bfloat16)
        part.k, part.v = part.k[:, begin : begin + T // 16], part.v[:, begin : begin + T // 16]
        part.forward(causal=False)
        kernels.attention_merge(o, lse, part.o, part.lse)
    assert np.abs(o - whole.o).max() <= 2.0**-7  # of q, k, v rounded to bf16, and the parts


@pytest.mark.parametrize("shape", ["whole", "heads", "pairs", "keys"])
def test_gradients_of_a_bias_do_not_depend_on_the_threads(kernels: Any, shape: str) -> None:
    case = CASES["attention_options"]
    drawn = {**case.examples[0], **case.large[2], "bias": shape}
    inputs = case.draw(np.random.default_rng(0), drawn, np.float32)
    alone = case.run(kernels, inputs)
    for threads in (2, 3, 5):
        kernels.set_num_threads(threads)
        shared = case.run(kernels, inputs)
        assert all(np.array_equal(alone[name], shared[name]) for name in ("o", "lse", "dbias", "dsinks"))


def test_nan_in_an_option_reaches_the_result(kernels: Any) -> None:
    bias, sinks = np.zeros((1, H, S, T), np.float32), np.zeros(H, np.float32)
    bias[0, 2, 5, 7] = np.nan
    o = Call(kernels).forward(bias=bias).o
    assert np.isnan(o[:, 5, 2]).all() and np.isfinite(np.delete(o, 2, axis=2)).all()
    sinks[4] = np.nan
    o = Call(kernels).forward(sinks=sinks, softcap=3.0).o
    assert np.isnan(o[:, :, 4]).all() and np.isfinite(np.delete(o, 4, axis=2)).all()


def test_a_bias_that_is_a_view(kernels: Any) -> None:
    """Slopes of ALiBi over a broadcast array of distances, and over the keys alone: the same up to a row's constant.

    Scores reach 65, where a rounding of fp32 is 8e-6, and probabilities have that relative error, some of them twice.
    """
    slopes = 2.0 ** -np.arange(1, H + 1, dtype=np.float32)
    distance = np.arange(T - S, T)[:, None] - np.arange(T)
    whole = np.broadcast_to((-slopes[:, None, None] * distance).astype(np.float32), (B, H, S, T))
    by_key = (slopes[:, None, None] * np.arange(T, dtype=np.float32))[None]
    a = Call(kernels).forward(bias=whole).backward(bias=whole)
    b = Call(kernels).forward(bias=by_key).backward(bias=by_key)
    assert all(close(getattr(a, name), getattr(b, name), 4e-5) for name in ("o", "dq", "dk", "dv"))
