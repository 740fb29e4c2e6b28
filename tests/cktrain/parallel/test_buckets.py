"""Buckets and spans: every element once, pieces at cache lines, the same pieces for a parameter that stands alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain import cython_kernels
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model, styles_of
from cktrain.nn.numerics import Numerics
from cktrain.parallel.buckets import join, overlap, plan_buckets, without
from cktrain.parallel.roles import tag_by_role


@pytest.fixture
def params(tiny) -> ParamStore:
    numerics = Numerics(cython_kernels.load(), "fp32")
    return ParamStore(build_model(tiny().model, numerics, 16).params(), numerics)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("nbytes", [1, 3000, 1 << 30])
def test_pieces_cover_every_element_once(params, ranks, nbytes):
    buckets = plan_buckets(params, ranks, nbytes=nbytes)
    times = np.zeros(params.size, int)
    for bucket in buckets:
        assert sum(bucket.counts) == bucket.stop - bucket.start
        for rank in range(ranks):
            start, stop = bucket.piece(rank)
            assert start % 16 == 0
            times[start:stop] += 1
    assert (times == 1).all()
    assert [p for bucket in buckets for p in bucket.params] == params.params
    for bucket in buckets[:-1]:
        assert sum(p.size for p in bucket.params) * 4 >= min(nbytes, params.count * 4)
    assert (len(buckets) == 1) == (nbytes == 1 << 30)


def test_shares_are_even(params):
    """The optimizer's state is what ZeRO divides: no rank has 2 % more than its share of 2 MB."""
    for bucket in plan_buckets(params, 4):
        assert max(bucket.counts) - min(bucket.counts) <= 16


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("nbytes", [3000, 1 << 30])
def test_no_block_is_cut(params, ranks, nbytes):
    """Counted from each parameter's first element; every element once."""
    buckets = plan_buckets(params, ranks, nbytes=nbytes, block=256)
    pieces = sorted(bucket.piece(rank) for bucket in buckets for rank in range(ranks))
    assert pieces[0][0] == 0 and pieces[-1][1] == params.size
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    begins = [param.start for param in params.trainable]
    for cut, _ in pieces:
        assert (cut - max(begin for begin in begins if begin <= cut)) % 256 == 0 or cut == params.size


def test_a_parameter_alone_is_a_bucket(params):
    alone = params.params[3]
    buckets = plan_buckets(params, 2, alone={alone})
    assert [bucket.params for bucket in buckets if alone in bucket.params] == [(alone,)]
    assert len(buckets) == 3


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("nbytes", [1, 3000, 1 << 30])
def test_a_whole_matrix_belongs_to_one_rank(tiny, ranks, nbytes):
    model = build_model(
        tiny(**{"model.num_hidden_layers": 6}).model, Numerics(cython_kernels.load(), "fp32"), 16
    )
    tag_by_role(model.params(), styles_of(tiny().model))
    params = ParamStore(model.params(), model.num)
    buckets = plan_buckets(params, ranks, nbytes=nbytes, whole_matrices=True)
    pieces = [(rank, *bucket.piece(rank)) for bucket in buckets for rank in range(ranks)]
    assert sum(stop - start for _, start, stop in pieces) == params.size
    matrices = [param for param in params.trainable if param.spec.optimizer == "matrix"]
    assert len(matrices) == 24
    for param in matrices:
        owners = [
            rank for rank, start, stop in pieces if start < param.start + param.size and param.start < stop
        ]
        assert len(owners) == 1, param.name
    held = [sum(stop - start for owner, start, stop in pieces if owner == rank) for rank in range(ranks)]
    assert max(held) - min(held) <= 2 * max(param.size for param in matrices)


spans = st.lists(st.integers(0, 40), min_size=0, max_size=10, unique=True).map(
    lambda ends: list(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)


def elements(found) -> set[int]:
    return {i for start, stop in found for i in range(start, stop)}


@given(a=spans, b=spans)
def test_spans_are_sets(a, b):
    assert elements(join(a)) == elements(a)
    assert elements(overlap(a, b)) == elements(a) & elements(b)
    assert elements(without(a, b)) == elements(a) - elements(b)
    assert all(left[1] < right[0] for left, right in zip(join(a), join(a)[1:], strict=False))
