"""The rank grid: every rank has one place, and degrees that do not fit are named."""

from __future__ import annotations

import itertools

import pytest

from cktrain.config import ParallelConfig
from cktrain.parallel.mesh import Mesh, resolve_mesh


@pytest.mark.parametrize("degrees", list(itertools.product([1, 2, 3], repeat=3)))
def test_coordinates_are_a_bijection_with_tensor_innermost(degrees):
    mesh = Mesh(*degrees)
    coordinates = [mesh.coordinates(rank) for rank in range(mesh.world)]
    assert [mesh.rank(place) for place in coordinates] == list(range(mesh.world))
    places = [tuple(place[axis] for axis in ("data", "pipeline", "tensor")) for place in coordinates]
    assert places == list(itertools.product(*(range(n) for n in degrees)))


def test_the_rest_goes_to_the_open_degree():
    assert resolve_mesh(ParallelConfig(data=-1, tensor=2, pipeline=3), 24) == Mesh(4, 3, 2)
    assert resolve_mesh(ParallelConfig(data=2, tensor=-1), 8) == Mesh(2, 1, 4)


@pytest.mark.parametrize(
    "config, world, message",
    [
        ({"tensor": 3}, 4, r"data -1 x pipeline 1 x tensor 3: 4 ranks are not a multiple of 3"),
        ({"data": 2, "tensor": 2}, 3, r"data 2 x pipeline 1 x tensor 2 = 4 ranks, and 3 were started"),
        ({"data": -1, "tensor": -1}, 4, r"data and tensor are both -1"),
        ({"pipeline": 0}, 4, r"parallel.pipeline is 0"),
    ],
)
def test_degrees_that_do_not_fit_are_named(config, world, message):
    with pytest.raises(ValueError, match=message):
        resolve_mesh(ParallelConfig(**config), world)
