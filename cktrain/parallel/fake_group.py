"""Ranks that do not exist: groups of any size that move nothing and note what they are asked to move.

With them one process takes the place of any rank of a mesh, divides a model as that rank would, and finds what it would
hold and send. Bytes are those that one rank sends by the algorithms that move least, for n bytes and s ranks:

    all-reduce 2·n·(s-1)/s      reduce-scatter, all-gather n·(s-1)/s      broadcast, send n      all-to-all n - own part
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.comm.group import Group
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import CompletedWork, Work
from cktrain.parallel.mesh import AXES, Mesh
from cktrain.parallel.ranks import Ranks


@dataclass
class Traffic:
    """What one rank sends in a group."""

    nbytes: float = 0.0
    calls: int = 0

    def add(self, nbytes: float) -> None:
        """One call more."""
        self.nbytes += nbytes
        self.calls += 1


class FakeGroup(SoloGroup):
    """One rank of a group of `size`. Every operation is complete at once, and leaves its arrays as they are."""

    def __init__(self, rank: int, size: int, name: str, split_size: int = 1) -> None:
        """`split_size` is the size of the groups that `split` gives."""
        super().__init__(name)
        self.rank, self.size, self.split_size = rank, size, split_size
        self.traffic = Traffic()

    def split(self, color: int, key: int = 0) -> Group:
        """Rank 0 of a group of `split_size`."""
        return FakeGroup(0, self.split_size, f"{self.name}.{color}")

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """All ranks say the same."""
        return [bytes(data)] * self.size

    def all_reduce(self, array: np.ndarray, op: str = "sum", async_: bool = False) -> Work:
        """Note 2·n·(s-1)/s bytes."""
        return self._note(2 * array.nbytes * (self.size - 1) / self.size)

    def reduce_scatter(
        self,
        output: np.ndarray,
        input: np.ndarray,
        op: str = "sum",
        counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Note n·(s-1)/s bytes of the input."""
        return self._note(input.nbytes * (self.size - 1) / self.size)

    def all_gather(
        self,
        output: np.ndarray,
        input: np.ndarray,
        counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Note n·(s-1)/s bytes of the output."""
        return self._note(output.nbytes * (self.size - 1) / self.size)

    def broadcast(self, array: np.ndarray, root: int = 0, async_: bool = False) -> Work:
        """Note n bytes."""
        return self._note(array.nbytes)

    def all_to_all(
        self,
        output: np.ndarray,
        input: np.ndarray,
        output_counts: Sequence[int] | None = None,
        input_counts: Sequence[int] | None = None,
        async_: bool = False,
    ) -> Work:
        """Note the bytes of the input's parts for other ranks."""
        own = input.size / self.size if input_counts is None else input_counts[self.rank]
        return self._note(input.nbytes - own * input.itemsize)

    def send(self, array: np.ndarray, to: int, async_: bool = False) -> Work:
        """Note n bytes."""
        return self._note(array.nbytes)

    def recv(self, array: np.ndarray, source: int, async_: bool = False) -> Work:
        """Note nothing: the sender does."""
        return CompletedWork()

    def _note(self, nbytes: float) -> Work:
        if self.size > 1:
            self.traffic.add(nbytes)
        return CompletedWork()


def fake_ranks(mesh: Mesh, stage: int, kv_heads: int) -> Ranks:
    """The first rank of a stage of the mesh, with groups that do not exist; `kv_heads` are those of the model."""
    return fake_rank(mesh, {**dict.fromkeys(AXES, 0), "pipeline": stage}, kv_heads)


def fake_rank(mesh: Mesh, coordinates: Mapping[str, int], kv_heads: int) -> Ranks:
    """Any rank of the mesh, as `fake_ranks`."""
    split_sizes = {
        "pipeline": 2,
        "tensor": max(1, mesh.tensor // kv_heads),
    }  # of the groups of partial gradients
    groups = {
        axis: FakeGroup(coordinates[axis], degree, axis, split_sizes.get(axis, 1))
        for axis, degree in mesh.degrees.items()
    }
    return Ranks(mesh, FakeGroup(mesh.rank(coordinates), mesh.world, "world"), groups)
