"""Blocks: any run of a divided parameter's elements is rectangles of the whole one, and comes back from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.memory.param import Param, ShardRegion
from cktrain.parallel.blocks import Block, blocks_of, read_label


def matrix(kind: str) -> Param:
    """Of a whole (12, 6): all of it; rows of two parts and a row of padding; some columns; of a vector (12): some."""
    param = Param("w", (12,) if kind == "vector" else (12, 6))
    if kind == "rows":
        param.shard((6, 6), (ShardRegion(0, 2, 2), ShardRegion(2, 9, 3)))
    elif kind == "columns":
        param.shard((12, 3), (ShardRegion(0, 0, 12, 3),))
    elif kind == "vector":
        param.shard((5,), (ShardRegion(0, 1, 2), ShardRegion(2, 7, 3)))
    return param


@pytest.mark.parametrize("kind", ["whole", "rows", "columns", "vector"])
@given(data=st.data())
def test_blocks_hold_the_elements_of_the_whole(kind, data):
    param = matrix(kind)
    whole = np.arange(1.0, 1 + np.prod(param.global_shape)).reshape(param.global_shape)
    here = np.zeros(param.shape)
    param.put(here, whole)
    start = data.draw(st.integers(0, param.size))
    stop = data.draw(st.integers(start, param.size))
    back = np.zeros(param.shape)
    count = 0
    for block, run in blocks_of(param, start, stop):
        name, found = read_label(block.label("param.w"), block.shape)
        assert found == block
        row, column = found.row, found.column
        values = here.reshape(-1)[start:stop][run].reshape(block.shape)
        at = tuple(slice(a, a + n) for a, n in zip((row, column), block.shape, strict=False))
        np.testing.assert_array_equal(values, whole[at])
        assert name == "param.w"
        param.put(back, values, row, column)
        count += values.size
    wanted = np.zeros(param.size)
    wanted[start:stop] = here.reshape(-1)[start:stop]
    np.testing.assert_array_equal(back.reshape(-1), wanted)
    assert count == np.count_nonzero(wanted)  # padding is in no block


def test_labels():
    assert Block(2, 3).label("param.b") == "param.b[2:5]"
    assert Block(2, 3, 4, 8).label("w") == "w[2:5,4:12]"
    assert read_label("exp_avg.a.0.w[2:5,4:12]", (3, 8)) == ("exp_avg.a.0.w", Block(2, 3, 4, 8))
    for label, shape in (("param.w", (3, 8)), ("param.w[2:5]", (3, 8)), ("param.w[2:5,4:12]", (3,))):
        with pytest.raises(ValueError, match="does not name a block"):
            read_label(label, shape)


@pytest.mark.parametrize("shape", [(9,), (9, 7)])
def test_blocks_meet_in_the_elements_that_both_have(shape):
    whole = np.arange(np.prod(shape)).reshape(shape)
    vector = len(shape) == 1
    blocks = [Block(0, 9, 0, None if vector else 7), Block(2, 3, 1, None if vector else 4)]
    blocks += [Block(4, 5, 3, None if vector else 4), Block(7, 2, 0, None if vector else 2)]

    def values(block):
        columns = () if vector else (slice(block.column, block.column + block.columns),)
        return whole[(slice(block.row, block.row + block.rows), *columns)]

    for one in blocks:
        for other in blocks:
            common = np.intersect1d(values(one), values(other))
            met = one.meet(other)
            if met is None:
                assert common.size == 0
            else:
                np.testing.assert_array_equal(values(one)[met[0]], values(other)[met[1]])
                assert values(one)[met[0]].size == common.size
