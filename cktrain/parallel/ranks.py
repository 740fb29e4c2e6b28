"""This rank's place in the mesh and its groups: who it divides data, stages and layers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cktrain.comm.group import Group
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.mesh import AXES, Mesh


@dataclass(frozen=True)
class Ranks:
    """The groups of one rank, one per axis of the mesh. A degree of 1 is a group of one rank, so nothing branches on it.

    Ranks of `data` hold the same shard of the model and other rows of the batch; ranks of `pipeline` hold other
    stages for the same rows; ranks of `tensor` hold other shards of the same layers. A rank's number in a group is
    its coordinate.
    """

    mesh: Mesh
    world: Group
    groups: Mapping[str, Group]
    comm_timer: CommTimer = field(default_factory=CommTimer)

    def group(self, axis: str) -> Group:
        """The ranks that differ from this one along an axis alone."""
        return self.groups[axis]

    @property
    def data(self) -> Group:
        """`group("data")`."""
        return self.groups["data"]

    @property
    def pipeline(self) -> Group:
        """`group("pipeline")`."""
        return self.groups["pipeline"]

    @property
    def tensor(self) -> Group:
        """`group("tensor")`."""
        return self.groups["tensor"]

    @property
    def last_stage(self) -> int:
        """Number of the stage with the head."""
        return self.pipeline.size - 1

    @property
    def reports_loss(self) -> bool:
        """Whether this rank's losses count: tensor ranks compute the same ones, and only the last stage has them."""
        return self.pipeline.rank == self.last_stage and self.tensor.rank == 0


def divide_world(world: Group, mesh: Mesh) -> Ranks:
    """Split the world into the groups of the mesh (collective)."""
    here = mesh.coordinates(world.rank)
    groups = {axis: world.split(mesh.rank({**here, axis: 0}), here[axis]) for axis in AXES}
    return Ranks(mesh, world, groups)
