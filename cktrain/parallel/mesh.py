"""The grid of ranks: world = data x pipeline x tensor, tensor innermost, data outermost. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from cktrain.config import ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """Degrees of parallelism; `coordinates` maps a rank to its place."""

    data: int
    pipeline: int
    tensor: int

    @property
    def world(self) -> int:
        """Number of ranks."""
        return self.data * self.pipeline * self.tensor

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(data, pipeline, tensor) coordinates of a rank."""
        assert 0 <= rank < self.world, (rank, self.world)
        return rank // (self.pipeline * self.tensor), rank // self.tensor % self.pipeline, rank % self.tensor


def resolve_mesh(config: ParallelConfig, world: int) -> Mesh:
    """The mesh of `world` ranks; one degree may be -1, "the rest".

    Raises ValueError, naming all numbers, when the degrees do not multiply to the world.
    """
    degrees = {"data": config.data, "pipeline": config.pipeline, "tensor": config.tensor}
    spelled = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
    for name, degree in degrees.items():
        if degree != -1 and degree < 1:
            raise ValueError(f"[parallel] parallel.{name} is {degree}. Give 1 or more, or -1 for the rest.")
    open_ones = [name for name, degree in degrees.items() if degree == -1]
    if len(open_ones) > 1:
        raise ValueError(
            f"[parallel] {spelled}: {' and '.join(open_ones)} are both -1. Only one can be the rest."
        )
    fixed = 1
    for degree in degrees.values():
        fixed *= max(degree, 1)
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
