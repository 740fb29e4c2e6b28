"""A linear is format x layout x adapters: any of each together gives the same numbers as the plain product."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from lora import add_lora

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot, plan_slot
from cktrain.nn import formats
from cktrain.nn.adapters.dora import DoRA
from cktrain.nn.adapters.lora import LoRA
from cktrain.nn.embedding import Embedding
from cktrain.nn.formats import Dense, Widened
from cktrain.nn.linear import Linear
from cktrain.nn.numerics import Numerics

N, I, O = 7, 6, 10  # noqa: E741  (the letters of docs/kernels.md)


class Bench:
    """A linear, its arguments, and a slot."""

    def __init__(
        self,
        adapters: int,
        stored: np.dtype | None = None,
        precision: str = "fp64",
        kind: type[LoRA] = LoRA,
        parts: tuple[int, ...] = (),
        inputs: int = I,
    ) -> None:
        isa = "reference" if precision == "fp64" else None
        self.num = Numerics(cython_kernels.load(isa), precision)
        self.linear = Linear("l", self.num, inputs, O, bias=True, std=0.3, parts=parts)
        for _ in range(adapters):
            add_lora(self.linear, kind=kind)
        if stored is not None:
            self.linear.weight.tag(trainable=False)
            assert self.linear.bias is not None
            self.linear.bias.tag(trainable=False)
        self.params = ParamStore(self.linear.params(), self.num)
        rng = np.random.default_rng(1)
        for param in self.params.params:
            param.data[...] = rng.standard_normal(param.shape)
        self.params.refresh()
        if stored is not None:
            self.linear.weight.value = self.linear.weight.value.astype(stored)
            self.linear.format = Widened(self.linear.weight)
        real = self.num.compute_dtype
        self.x, self.dy, self.residual = (
            rng.standard_normal(shape).astype(real) for shape in ((N, inputs), (N, O), (N, O))
        )
        with self.num.dry():
            (self.slot,) = plan_slot(1, N, self.run).allocate()

    def run(self, slot) -> tuple[np.ndarray, np.ndarray]:
        out, dx = np.zeros_like(self.dy), self.x.copy()
        self.linear.forward(out, self.x, slot, self.residual)
        self.linear.backward(dx, self.dy, dx, slot)  # in the place of x
        return out, dx


def whole_weight(linear: Linear) -> np.ndarray:
    """The weight that adapters make of a linear's."""
    found = linear.weight.value.astype(np.float64)
    for lora in linear.adapters:
        lora.merge_into(found)
    return found


@pytest.mark.parametrize("adapters", [0, 1, 2])
@pytest.mark.parametrize("stored", [None, ml_dtypes.bfloat16, np.float16], ids=["dense", "bf16", "fp16"])
@pytest.mark.parametrize(
    "inputs,block_bytes",
    [(I, 1), (I, 3 * I * 8), (I, 1 << 20), (64, 1 << 20)],
    ids=["a row", "3 rows", "one block", "groups of 32"],
)
def test_any_format_with_any_adapters(monkeypatch, adapters, stored, inputs, block_bytes):
    monkeypatch.setattr(formats, "BLOCK_BYTES", block_bytes)
    bench = Bench(adapters, stored, inputs=inputs)
    out, dx = bench.run(bench.slot)
    weight = whole_weight(bench.linear)
    np.testing.assert_allclose(
        out, bench.x @ weight.T + bench.linear.bias.value + bench.residual, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(dx, bench.dy @ weight, rtol=1e-12, atol=1e-12)
    dweight = bench.dy.T @ bench.x
    for lora in bench.linear.adapters:
        (b,), scale = lora.b, 0.5
        np.testing.assert_allclose(b.weight.grad, scale * dweight @ lora.a.value.T, rtol=1e-11)
        np.testing.assert_allclose(lora.a.grad, scale * b.weight.value.T @ dweight, rtol=1e-11)
    if stored is None:
        np.testing.assert_allclose(bench.linear.weight.grad, dweight, rtol=1e-12)
        np.testing.assert_allclose(bench.linear.bias.grad, bench.dy.sum(axis=0), rtol=1e-12)
    else:
        assert bench.linear.weight not in bench.params.trainable


@pytest.mark.parametrize("stored", [None, ml_dtypes.bfloat16, np.float16], ids=["dense", "bf16", "fp16"])
@pytest.mark.parametrize("block_bytes", [1, 3 * I * 8, 1 << 20])
@pytest.mark.parametrize("parts", [(), (4, 1, 5)])
def test_dora_norms_the_rows_and_takes_the_norms_for_constants(monkeypatch, stored, block_bytes, parts):
    monkeypatch.setattr(formats, "BLOCK_BYTES", block_bytes)
    bench = Bench(1, stored, kind=DoRA, parts=parts)
    out, dx = bench.run(bench.slot)
    linear, (dora,) = bench.linear, bench.linear.adapters
    merged = whole_weight(linear)
    delta = np.concatenate([m.target.scale * m.weight.value @ dora.a.value[m.columns] for m in dora.b])
    weight = linear.weight.value.astype(np.float64) + delta
    norms = np.linalg.norm(weight, axis=1)
    gain = np.concatenate([m.weight.value for m in dora.m]) / norms
    np.testing.assert_allclose(merged, gain[:, None] * weight, rtol=1e-12)
    close = {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(out, bench.x @ merged.T + linear.bias.value + bench.residual, **close)
    np.testing.assert_allclose(dx, bench.dy @ merged, **close)
    dz = gain[:, None] * (bench.dy.T @ bench.x)
    for rows, magnitude in zip(dora.b, dora.m, strict=True):
        here, a = rows.target.rows, dora.a.value[rows.columns]
        np.testing.assert_allclose(rows.weight.grad, rows.target.scale * dz[here] @ a.T, **close)
        np.testing.assert_allclose(
            dora.a.grad[rows.columns], rows.target.scale * rows.weight.value.T @ dz[here], **close
        )
        along = np.einsum("no,no->o", bench.dy[:, here], bench.x @ weight[here].T)
        np.testing.assert_allclose(magnitude.weight.grad, along / norms[here], **close)
    if stored is None:
        np.testing.assert_allclose(linear.weight.grad, dz, **close)
        np.testing.assert_allclose(linear.bias.grad, bench.dy.sum(axis=0), **close)


def test_a_fresh_dora_changes_nothing_and_a_row_of_zeros_stays_zero():
    bench = Bench(1, kind=DoRA)
    bench.linear.weight.data[3] = 0
    (dora,) = bench.linear.adapters
    dora.b[0].weight.data[...] = 0
    dora.start()
    np.testing.assert_allclose(
        dora.m[0].weight.data, np.linalg.norm(bench.linear.weight.data, axis=1), rtol=1e-14
    )
    out, _ = bench.run(bench.slot)
    plain = bench.x @ bench.linear.weight.data.T + bench.linear.bias.value + bench.residual
    np.testing.assert_allclose(out, plain, rtol=1e-13)
    np.testing.assert_array_equal(whole_weight(bench.linear)[3], 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dora_on_the_compiled_kernels(precision):
    """Beside fp64 of the same numbers; bf16 rounds g ∘ w, g ∘ b and each product (some 2^-8)."""
    bench = Bench(1, ml_dtypes.bfloat16, precision, kind=DoRA)
    out, dx = (array.astype(np.float64) for array in bench.run(bench.slot))
    merged, x, dy = whole_weight(bench.linear), bench.x.astype(np.float64), bench.dy.astype(np.float64)
    wanted = x @ merged.T + bench.linear.bias.value + bench.residual.astype(np.float64)
    tolerance = {"fp32": 1e-5, "bf16": 4e-2}[precision]
    assert np.abs(out - wanted).max() < tolerance * np.abs(wanted).max()
    assert np.abs(dx - dy @ merged).max() < tolerance * np.abs(dx).max()


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "fp16"])
def test_rows_of_a_stored_table_are_widened(stored):
    num = Numerics(cython_kernels.load(), "fp32")
    embedding = Embedding("e", num, O, I, std=0.3)
    embedding.weight.tag(trainable=False)
    ParamStore(embedding.params(), num).initialize(1)
    embedding.weight.value = embedding.weight.value.astype(stored)
    embedding.format = Widened(embedding.weight)
    ids = np.array([3, 0, 3, 9], np.int32)
    out = np.empty((4, I), np.float32)
    embedding.forward(out, ids, Slot(1, 4))
    np.testing.assert_array_equal(out, embedding.weight.value[ids].astype(np.float32))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16], ids=["bf16", "fp16"])
def test_widened_weights_multiply_as_dense_ones(precision, stored):
    """On the compiled kernels: the product with the widened weight, to the last bit, for widening is exact.

    (In a bf16 run fp16's further bits are rounded, once.)
    """
    bench = Bench(0, stored, precision)
    out, dx = bench.run(bench.slot)
    bench.linear.weight.value = bench.linear.weight.value.astype(bench.num.compute_dtype)
    bench.linear.format = Dense(bench.linear.weight)
    dense = bench.run(bench.slot)
    np.testing.assert_array_equal(out, dense[0])
    np.testing.assert_array_equal(dx, dense[1])
