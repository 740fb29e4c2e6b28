"""The grid of ranks, with named axes: world = data x pipeline x tensor, tensor innermost. Pure arithmetic.

An axis is a field of `Mesh` and a key of `parallel:`; whatever loops over parallelism loops over `AXES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from cktrain.config import ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """Degrees of parallelism, the outermost axis first; `coordinates` maps a rank to its place."""

    data: int = 1
    pipeline: int = 1
    tensor: int = 1

    @property
    def degrees(self) -> dict[str, int]:
        """Ranks along each axis, by its name."""
        return asdict(self)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return math.prod(self.degrees.values())

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank stands on each axis."""
        assert 0 <= rank < self.world, (rank, self.world)
        found = {}
        for axis, degree in reversed(self.degrees.items()):
            rank, found[axis] = divmod(rank, degree)
        return {axis: found[axis] for axis in AXES}

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank at these coordinates."""
        rank = 0
        for axis, degree in self.degrees.items():
            assert 0 <= coordinates[axis] < degree, (axis, coordinates, self)
            rank = rank * degree + coordinates[axis]
        return rank

    def __str__(self) -> str:
        return spell(self.degrees)


AXES = tuple(field.name for field in fields(Mesh))
"""Names of the axes, the outermost first."""


def spell(degrees: Mapping[str, int]) -> str:
    """data 2 x pipeline 1 x tensor 4."""
    return " x ".join(f"{axis} {degree}" for axis, degree in degrees.items())


def given_degrees(config: ParallelConfig) -> dict[str, int]:
    """The degree of each axis as the configuration gives it; -1 is "the rest"."""
    return {axis: getattr(config, axis) for axis in AXES}


def resolve_mesh(config: ParallelConfig, world: int) -> Mesh:
    """The mesh of `world` ranks; one degree may be -1, "the rest".

    Raises ValueError, naming all numbers, when the degrees do not multiply to the world.
    """
    degrees = given_degrees(config)
    spelled = spell(degrees)
    for name, degree in degrees.items():
        if degree != -1 and degree < 1:
            raise ValueError(f"[parallel] parallel.{name} is {degree}. Give 1 or more, or -1 for the rest.")
    open_ones = [name for name, degree in degrees.items() if degree == -1]
    if len(open_ones) > 1:
        raise ValueError(
            f"[parallel] {spelled}: {' and '.join(open_ones)} are both -1. Only one can be the rest."
        )
    fixed = math.prod(max(degree, 1) for degree in degrees.values())
    if open_ones:
        if world % fixed:
            raise ValueError(
                f"[parallel] {spelled}: {world} ranks are not a multiple of {fixed}. Start a multiple of {fixed} ranks."
            )
        degrees[open_ones[0]] = world // fixed
    elif fixed != world:
        raise ValueError(
            f"[parallel] {spelled} = {fixed} ranks, and {world} were started. Start {fixed}, or set parallel.data: -1."
        )
    return Mesh(**degrees)
