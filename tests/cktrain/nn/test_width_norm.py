"""RMSNorm over all heads: its gradient, and ranks that have some of the heads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn.layout import Whole
from cktrain.nn.numerics import Numerics
from cktrain.nn.width_norm import WidthNorm

ROWS, HEADS, DIM, EPS = 5, 4, 6, 1e-2


class InTurn(Whole):
    """What a rank's layout does for a norm, between threads."""

    moves = True

    def __init__(self, rank: int, sums: list[np.ndarray], barrier: Barrier) -> None:
        self.rank, self.sums, self.barrier, self.ranks = rank, sums, barrier, len(sums)

    def all_reduce(self, array: np.ndarray, op: str) -> None:
        assert op == "sum"
        self.sums[self.rank] = array.copy()
        self.barrier.wait(60)
        array[...] = sum(self.sums)
        self.barrier.wait(60)


def run(x, weight, dy, layout=None, accumulate=False):
    """(y, dx, gradient of the weight) of a norm that has the heads of x (N, H, D)."""
    num = Numerics(cython_kernels.load("reference"), "fp64")
    norm = WidthNorm("norm", num, x.shape[1] * DIM, EPS, unit=DIM)
    norm.layout = layout or Whole()
    store = ParamStore(norm.params(), num)
    norm.weight.data[...] = weight
    y, dx = np.empty(x.shape), dy.copy()

    def both(slot):
        norm.forward(y, x, slot)
        norm.backward(dx, dy if accumulate else dx, x, slot, accumulate)

    with num.dry():
        plan = plan_slot(1, len(x), both)
    assert np.array_equal(dx, dy)
    slot = plan.allocate()[0]
    store.begin_sums()
    both(slot)
    return y, dx, norm.weight.grad.copy()


def drawn():
    rng = np.random.default_rng(5)
    projected = rng.standard_normal((ROWS, HEADS + 3, DIM))
    return projected[:, :HEADS], rng.standard_normal(HEADS * DIM), rng.standard_normal((ROWS, HEADS, DIM))


def test_the_gradient_is_that_of_the_formula():
    x, weight, dy = drawn()

    def loss(x, weight):
        wide = x.reshape(ROWS, -1)
        y = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * weight
        return (y * dy.reshape(ROWS, -1)).sum()

    y, dx, dweight = run(x, weight, dy)
    assert np.isclose((y * dy).sum(), loss(x, weight), rtol=1e-12)
    step = 1e-6
    for row, head, i in [(0, 0, 0), (3, 2, 5), (4, 3, 1)]:
        moved = np.zeros(x.shape)
        moved[row, head, i] = step
        numeric = (loss(x + moved, weight) - loss(x - moved, weight)) / (2 * step)
        assert np.isclose(dx[row, head, i], numeric, rtol=1e-6, atol=1e-8)
        moved = np.zeros(weight.shape)
        moved[head * DIM + i] = step
        numeric = (loss(x, weight + moved) - loss(x, weight - moved)) / (2 * step)
        assert np.isclose(dweight[head * DIM + i], numeric, rtol=1e-6, atol=1e-8)
    assert np.allclose(run(x, weight, dy, accumulate=True)[1], dy + dx, rtol=1e-12)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("ranks, copies", [(2, 1), (4, 1), (8, 2)])
def test_ranks_with_some_of_the_heads_are_one_process(ranks, copies, accumulate):
    """With copies, neighbours have the same head and each a part of its gradient."""
    x, weight, dy = drawn()
    heads = HEADS * copies // ranks
    shares = np.random.default_rng(7).standard_normal((copies, *dy.shape))
    shares[-1] = dy - shares[:-1].sum(axis=0)
    sums, barrier = [np.empty(0)] * ranks, Barrier(ranks)

    def one(rank):
        here = slice(rank // copies * heads, (rank // copies + 1) * heads)
        part = weight.reshape(HEADS, DIM)[here].ravel()
        layout = InTurn(rank, sums, barrier)
        return run(x[:, here], part, shares[rank % copies][:, here], layout, accumulate)

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(one, range(ranks)))
    y, dx, dweight = run(x, weight, dy, accumulate=accumulate)
    assert np.allclose(np.concatenate([f[0] for f in found[::copies]], axis=1), y, rtol=1e-12)
    for i, wanted in ((1, dx), (2, dweight)):
        summed = [sum(f[i] for f in found[k : k + copies]) for k in range(0, ranks, copies)]
        assert np.allclose(np.concatenate(summed, axis=i % 2), wanted, rtol=1e-12)
