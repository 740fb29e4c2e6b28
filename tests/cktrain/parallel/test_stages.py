"""Partition: contiguous, complete, at least a block each, and none cheaper."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain import cython_kernels
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.parallel.stages import cut, keep_stage, partition_by_flops

costs = st.integers(1, 50)


def dearest(cuts, blocks, first, last) -> float:
    sums = [sum(blocks[a:b]) for a, b in cuts]
    sums[0] += first
    sums[-1] += last
    return max(sums)


@given(blocks=st.lists(costs, min_size=1, max_size=9), first=costs, last=costs, data=st.data())
def test_no_cut_is_cheaper(blocks, first, last, data):
    stages = data.draw(st.integers(1, len(blocks)))
    cuts = cut(blocks, first, last, stages)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(blocks)
    assert all(a < b for a, b in cuts)
    assert all(left[1] == right[0] for left, right in pairwise(cuts))
    others = [
        list(zip((0, *stops), (*stops, len(blocks)), strict=True))
        for stops in combinations(range(1, len(blocks)), stages - 1)
    ]
    assert dearest(cuts, blocks, first, last) == min(dearest(c, blocks, first, last) for c in others)


def test_more_stages_than_layers_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match="pipeline 3: the model has 2 layers"):
        cut([1.0, 1.0], 0, 0, 3)


def test_a_large_head_counts_as_layers(tiny):
    """61 words are little beside a block of a tiny model; 4000 words are several blocks."""
    for vocab, first_stage in ((61, 4), (4000, 7)):
        config = tiny(**{"model.num_hidden_layers": 8, "model.vocab_size": vocab})
        model = build_model(config.model, Numerics(cython_kernels.load(), "fp32"), 16)
        assert partition_by_flops(model, 2, 16)[0] == (0, first_stage)


def test_stages_together_are_the_model(tiny):
    def build():
        config = tiny(**{"model.num_hidden_layers": 3, "model.tie_word_embeddings": True})
        return build_model(config.model, Numerics(cython_kernels.load(), "fp32"), 16)

    names = []
    for stage, blocks in enumerate([(0, 1), (1, 2), (2, 3)]):
        model = build()
        keep_stage(model, blocks, stage, 3)
        assert (model.embedding is None, model.head is None) == (stage != 0, stage != 2)
        names += [param.name for param in model.params()]
    whole = [param.name for param in build().params()]
    assert set(names) == set(whole) and len(names) == len(whole) + 1  # the tied weight is on two stages
