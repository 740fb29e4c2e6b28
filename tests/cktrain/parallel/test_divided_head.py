"""The head whose vocabulary tensor ranks divide: labelled rows, scores and weighted gradients are one rank's."""

from __future__ import annotations

import numpy as np
import pytest
from thread_group import run_ranks

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn import head as head_module
from cktrain.nn.head import Head
from cktrain.nn.layout import Whole
from cktrain.nn.linear import Linear
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.sequence_parallel import SequenceParallelRegion
from cktrain.parallel.tensor import _divide_vocabulary

ROWS, SIZE, WORDS = 24, 6, 13


def compute(group, without, train, options):
    """(loss, count, logp, lse, dx of loss, of gradient; the weight's and norm's gradients of both)."""
    num = Numerics(cython_kernels.load("reference"), "fp64")
    output = Linear("head", num, SIZE, WORDS, bias=False, std=1.0)
    head = Head(RMSNorm("norm", num, SIZE, 1e-5), output, **options)
    if group.size > 1:
        _divide_vocabulary(head.output, SequenceParallelRegion(num, group, CommTimer()))
    assert (type(head.output.layout) is Whole) == (group.size == 1)
    params = ParamStore(head.params(), num)
    params.initialize(1)
    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((ROWS, SIZE)), rng.integers(0, WORDS, ROWS).astype(np.int32)
    weights = rng.standard_normal(ROWS)
    labels[list(without)] = -100
    share = ROWS // group.size
    x = x[group.rank * share : (group.rank + 1) * share]
    found = []

    def run(slot) -> None:
        dx = np.empty_like(x)
        found.clear()
        params.begin_sums()
        found.extend(head.loss(x, dx if train else None, labels, slot))
        found.extend(array.copy() for array in head.score(x, labels, slot))
        if train:
            found.extend((dx.copy(), head.output.weight.grad.copy(), head.norm.weight.grad.copy()))
            params.begin_sums()
            head.gradient(dx, x, labels, weights, found[3], slot)
            found.extend((dx.copy(), head.output.weight.grad.copy(), head.norm.weight.grad.copy()))

    with num.dry():
        (slot,) = plan_slot(1, ROWS, run).allocate()
    run(slot)
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("without", [(), (0, 3, 4, 5, 22), tuple(range(12)), tuple(range(ROWS))])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 1.5, "multiplier": 0.7}], ids=["plain", "multiplied and capped"]
)
def test_ranks_compute_what_one_does(monkeypatch, ranks, without, train, options):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 5 * 4 * 8)  # a few rows in a chunk
    monkeypatch.setattr(head_module, "LEAST_ROWS", 1)
    (wanted,) = run_ranks(1, lambda group: compute(group, without, train, options))
    found = run_ranks(ranks, lambda group: compute(group, without, train, options))
    for mine in found:
        for left, right in zip(mine[:4], wanted[:4], strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-12)
    if train:
        for dx, weight, norm in ((4, 5, 6), (7, 8, 9)):
            np.testing.assert_allclose(np.concatenate([f[dx] for f in found]), wanted[dx], atol=1e-12)
            np.testing.assert_allclose(
                np.concatenate([f[weight] for f in found])[:WORDS], wanted[weight], atol=1e-12
            )
            np.testing.assert_allclose(sum(f[norm] for f in found), wanted[norm], atol=1e-12)
