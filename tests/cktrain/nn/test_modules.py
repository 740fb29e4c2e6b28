"""One gradient check for every module: central differences of the fp64 reference kernels.

A module's forward and backward are held against each other for out = residual + alpha · f(x), whatever f is; so are the
promises of its contract: that accumulate adds, that the arrays that a docstring lets be one may be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from lora import HeldDoRA, add_lora

from cktrain import cython_kernels
from cktrain.data.sequence_keys import sequence_keys
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot, plan_slot
from cktrain.nn.adapters.lora import LoRA
from cktrain.nn.attention import Attention, AttentionShape, Rotary
from cktrain.nn.branch import Block, Branch
from cktrain.nn.embedding import Embedding, TokenEmbedding
from cktrain.nn.head import Head
from cktrain.nn.linear import Linear
from cktrain.nn.mlp import GeGLU, GeluMLP, SwiGLU
from cktrain.nn.module import Module
from cktrain.nn.norm import LayerNorm, RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.nn.rope_tables import rope_tables

B, T, C, WORDS = 2, 5, 8, 11
STEP = 1e-6
TOLERANCE = 1e-7
"""Of the largest gradient: central differences are off by about 1e-9 (rounding) + 1e-12 (curvature)."""


@dataclass(frozen=True)
class Case:
    """A module, the width of its output, and what of the contract it has."""

    make: Callable[[Numerics], Module]
    width: int = C
    ids: bool = False
    """x are ids, which have no gradient."""
    scaled: bool = True
    """Takes a residual and alpha."""
    accumulates: bool = True
    dx_is_x: bool = True
    dx_is_dy: bool = False


def attention(
    num: Numerics,
    rotary: bool = True,
    qk_norm: bool = False,
    width: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    turned: int = 4,
    unit_offset: bool = False,
) -> Attention:
    shape = AttentionShape(heads=2, kv_heads=1, head_dim=4, window=window, softcap=softcap)
    tables = (
        Rotary(*(t.astype(num.master_dtype) for t in rope_tables(T, turned, 100.0, None))) if rotary else None
    )
    return Attention(
        "layers.0.attention",
        num,
        C,
        shape,
        tables,
        std=0.3,
        output_std=0.3,
        qkv_bias=True,
        output_bias=True,
        qk_norm_eps=1e-5 if qk_norm else None,
        qk_norm_width=width,
        qk_norm_unit_offset=unit_offset,
    )


def swiglu(num: Numerics) -> SwiGLU:
    return SwiGLU("layers.0.mlp", num, C, 6, bias=True, std=0.3, output_std=0.3)


def geglu(num: Numerics) -> GeGLU:
    return GeGLU("layers.0.mlp", num, C, 6, bias=True, std=0.3, output_std=0.3)


def gelu(num: Numerics) -> GeluMLP:
    return GeluMLP("layers.0.mlp", num, C, 6, tanh=False, std=0.3, output_std=0.3)


def norm(num: Numerics, name: str = "norm") -> RMSNorm:
    return RMSNorm(f"layers.0.{name}", num, C, 1e-5)


def block(num: Numerics) -> Block:
    first = Branch(norm(num, "a"), attention(num))
    return Block("layers.0", [first, Branch(norm(num, "b"), swiglu(num))])


def sandwich(num: Numerics) -> Block:
    """Both norms and a factor, as Gemma and Granite together would have."""
    first = Branch(norm(num, "a"), attention(num, qk_norm=True), norm(num, "after_a"), alpha=0.4)
    second = Branch(norm(num, "b"), gelu(num), norm(num, "after_b"), alpha=0.4)
    return Block("layers.0", [first, second])


def adapted(module: Module, kind: Callable[..., LoRA] = LoRA) -> Module:
    """Adapters beside each linear."""
    for linear in list(module.modules()):
        if isinstance(linear, Linear):
            add_lora(linear, kind=kind)
    return module


STREAM = {"scaled": False, "dx_is_x": False, "dx_is_dy": True}
CASES = {
    "linear": Case(lambda n: Linear("l", n, C, 6, bias=True, std=0.3), width=6),
    "linear, lora": Case(lambda n: adapted(Linear("l", n, C, 6, bias=True, std=0.3)), width=6),
    "linear, three loras": Case(
        lambda n: adapted(Linear("l", n, C, 6, bias=False, std=0.3, parts=(3, 1, 2))), width=6
    ),
    "attention, lora": Case(lambda n: adapted(attention(n))),
    "swiglu, lora": Case(lambda n: adapted(swiglu(n))),
    "block, lora": Case(lambda n: adapted(block(n)), accumulates=False, **STREAM),
    "linear, three doras": Case(
        lambda n: adapted(Linear("l", n, C, 6, bias=True, std=0.3, parts=(3, 1, 2)), HeldDoRA), width=6
    ),
    "block, dora": Case(lambda n: adapted(block(n), HeldDoRA), accumulates=False, **STREAM),
    "linear, dropout": Case(
        lambda n: adapted(Linear("l", n, C, 6, bias=True, std=0.3), partial(LoRA, dropout=0.4)), width=6
    ),
    "block, dropout": Case(
        lambda n: adapted(block(n), partial(LoRA, dropout=0.4)), accumulates=False, **STREAM
    ),
    "block, dora, dropout": Case(
        lambda n: adapted(block(n), partial(HeldDoRA, dropout=0.4)), accumulates=False, **STREAM
    ),
    "rms norm": Case(norm, dx_is_dy=True),
    "rms norm, unit offset": Case(lambda n: RMSNorm("norm", n, C, 1e-5, unit_offset=True), dx_is_dy=True),
    "layer norm": Case(lambda n: LayerNorm("norm", n, C, 1e-5), dx_is_dy=True),
    "attention": Case(attention),
    "attention, window": Case(lambda n: attention(n, window=2)),
    "attention, softcap": Case(lambda n: attention(n, softcap=0.5)),
    "attention, qk-norm": Case(lambda n: attention(n, qk_norm=True)),
    "attention, qk-norm over the width": Case(lambda n: attention(n, qk_norm=True, width=True)),
    "attention, qk-norm, unit offset": Case(lambda n: attention(n, qk_norm=True, unit_offset=True)),
    "attention, half of a head turns": Case(lambda n: attention(n, turned=2)),
    "attention, half of a normed head turns": Case(lambda n: attention(n, qk_norm=True, turned=2)),
    "attention, no rotary": Case(lambda n: attention(n, rotary=False)),
    "swiglu": Case(swiglu),
    "geglu": Case(geglu),
    "gelu": Case(gelu),
    "branch": Case(lambda n: Branch(norm(n), swiglu(n)), **STREAM),
    "branch, alpha": Case(lambda n: Branch(norm(n), attention(n), alpha=0.3), **STREAM),
    "branch, post-norm": Case(lambda n: Branch(None, swiglu(n), norm(n)), **STREAM),
    "branch, both norms, alpha": Case(
        lambda n: Branch(norm(n), gelu(n), LayerNorm("after", n, C, 1e-5), alpha=1.7), **STREAM
    ),
    "branch, no norm": Case(lambda n: Branch(None, attention(n)), **STREAM),
    "block": Case(block, accumulates=False, **STREAM),
    "block, sandwich": Case(sandwich, accumulates=False, **STREAM),
    "embedding": Case(lambda n: Embedding("e", n, WORDS, C, 0.3), ids=True),
    "token embedding": Case(
        lambda n: TokenEmbedding("t", n, Embedding("t.e", n, WORDS, C, 0.3), Embedding("t.p", n, T, C, 0.3)),
        ids=True,
    ),
    "token embedding, multiplied": Case(
        lambda n: TokenEmbedding("t", n, Embedding("t.e", n, WORDS, C, 0.3), multiplier=2.5), ids=True
    ),
    "head, multiplied and capped": Case(
        lambda n: Head(
            norm(n), Linear("head", n, C, WORDS, bias=False, std=0.3), softcap=0.7, multiplier=0.3
        ),
        width=WORDS,
    ),
    "head": Case(lambda n: Head(norm(n), Linear("head", n, C, WORDS, bias=False, std=0.3)), width=WORDS),
}


class Bench:
    """A module with parameters, a slot, and arguments."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.num = Numerics(cython_kernels.load("reference"), "fp64")
        self.module = case.make(self.num)
        self.store = ParamStore(self.module.params(), self.num)
        self.rng = np.random.default_rng(5)
        self.store.data[...] = 0.5 * self.rng.standard_normal(self.store.size)
        self.x = (
            self.rng.integers(0, WORDS, B * T).astype(np.int32)
            if case.ids
            else self.rng.standard_normal((B * T, C))
        )
        self.residual = self.rng.standard_normal((B * T, case.width)) if case.scaled else None
        self.alpha = 0.7 if case.scaled else 1.0
        self.dy = self.rng.standard_normal((B * T, case.width))
        with self.num.dry():
            (self.slot,) = plan_slot(B, T, self.run_both).allocate()
        self.slot.describe(None, None, sequence_keys(5, 0, B))

    def run_both(self, slot: Slot) -> None:
        out, dx = np.zeros_like(self.dy), np.zeros((B * T, C))
        self.module.forward(out, self.x, slot, self.residual, self.alpha)
        self.module.recompute(self.x, slot)
        self.module.backward(dx, self.dy, self.x, slot)

    def forward(self) -> np.ndarray:
        out = np.full_like(self.dy, np.nan)
        self.module.forward(out, self.x, self.slot, self.residual, self.alpha)
        return out

    def loss(self) -> float:
        return float(np.sum(self.forward() * self.dy))

    def differences(self, array: np.ndarray) -> np.ndarray:
        """The loss's gradient by `array`, by central differences."""
        found = np.empty_like(array)
        flat, out = array.reshape(-1), found.reshape(-1)
        for i in range(flat.size):
            before = flat[i]
            flat[i] = before + STEP
            above = self.loss()
            flat[i] = before - STEP
            below = self.loss()
            flat[i] = before
            out[i] = (above - below) / (2 * STEP)
        return found

    def backward(self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, accumulate: bool = False) -> None:
        """The gradients of the loss, whose f(x) has the factor alpha."""
        self.store.begin_sums()
        self.module.backward(dx, dy, x, self.slot, accumulate)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * max(1.0, np.abs(wanted).max()))


@pytest.fixture(params=list(CASES))
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(CASES[request.param])


def test_gradients_are_central_differences(bench):
    bench.forward()
    dx = np.full((B * T, C), np.nan)
    bench.backward(dx, bench.alpha * bench.dy, bench.x)
    for param in bench.store.params:
        close(param.grad, bench.differences(param.data))
    if not bench.case.ids:
        close(dx, bench.differences(bench.x))


def test_a_backward_adds_to_gradients_and_if_asked_to_dx(bench):
    bench.forward()
    dx = np.zeros((B * T, C))
    bench.backward(dx, bench.dy, bench.x)
    once, start = bench.store.grad.copy(), bench.rng.standard_normal(dx.shape)
    accumulates = bench.case.accumulates and not bench.case.ids
    again = start.copy()
    bench.forward()
    bench.module.backward(again, bench.dy, bench.x, bench.slot, accumulate=accumulates)
    close(bench.store.grad, 2 * once)
    if accumulates:
        close(again, start + dx)


def test_arrays_that_may_be_one(bench):
    """dx in the place of x or dy, and out in that of the residual."""
    wanted = bench.forward()
    if bench.case.scaled:
        out = bench.residual.copy()
        bench.module.forward(out, bench.x, bench.slot, out, bench.alpha)
        close(out, wanted)
    if bench.case.ids:
        return
    dx = np.zeros((B * T, C))
    bench.backward(dx, bench.dy, bench.x)
    grads = bench.store.grad.copy()
    if bench.case.dx_is_x:
        bench.forward()
        x = bench.x.copy()
        bench.backward(x, bench.dy, x)
        close(x, dx)
        close(bench.store.grad, grads)
    if bench.case.dx_is_dy:
        bench.forward()
        dy = bench.dy.copy()
        bench.backward(dy, dy, bench.x)
        close(dy, dx)
        close(bench.store.grad, grads)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scaled])
def test_a_residual_and_a_factor_are_plain_arithmetic(name):
    bench = Bench(CASES[name])
    scaled = bench.forward()
    plain = np.full_like(scaled, np.nan)
    bench.module.forward(plain, bench.x, bench.slot)
    close(scaled, bench.residual + bench.alpha * plain)


def keep_account(slot) -> set[tuple[str, str]]:
    """The keys of the arrays that are asked for as kept from now on."""
    found, kept = set(), slot.kept

    def asked(module, name, *rest):
        found.add((module.name, name))
        return kept(module, name, *rest)

    slot.kept = asked
    return found


def test_recompute_leaves_what_forward_left(bench):
    """Where a slot's saved arrays are lost, recompute brings them back; kept ones are not lost."""
    kept = keep_account(bench.slot)
    bench.forward()
    wanted, dx = np.zeros((B * T, C)), np.zeros((B * T, C))
    bench.backward(wanted, bench.dy, bench.x)
    grads = bench.store.grad.copy()
    for key, array in bench.slot._arrays.items():
        if isinstance(array, np.ndarray) and key not in kept:
            array.fill(np.nan)
    bench.module.recompute(bench.x, bench.slot)
    bench.backward(dx, bench.dy, bench.x)
    close(bench.store.grad, grads)
    if not bench.case.ids:
        close(dx, wanted)


def test_frozen_parameters_are_left_out_of_the_backward(bench):
    """Every other parameter frozen: the others' gradients and dx are what they were, no other is touched."""
    bench.forward()
    wanted, dx = np.zeros((B * T, C)), np.zeros((B * T, C))
    bench.backward(wanted, bench.dy, bench.x)
    grads = {param.name: param.grad.copy() for param in bench.store.params}
    other = Bench(bench.case)
    for number, param in enumerate(params := other.module.params()):
        param.has_memory = False
        param.tag(trainable=number % 2 == 0)
    other.store = ParamStore(params, other.num)
    for param in params:
        param.data[...] = bench.store[param.name].data
    other.forward()
    other.backward(dx, other.dy, other.x)
    for param in params:
        if param.trainable:
            close(param.grad, grads[param.name])
    assert other.store.frozen or len(params) == 1
    if not bench.case.ids:
        close(dx, wanted)
