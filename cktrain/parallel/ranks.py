"""This rank's place in the mesh and its groups: who it divides data, stages and layers with."""

from __future__ import annotations

from dataclasses import dataclass, field

from cktrain.comm.group import Group
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.waiting import Waiting


@dataclass(frozen=True)
class Ranks:
    """The groups of one rank. A degree of 1 is a group of one rank, so nothing branches on it.

    Ranks of `data` hold the same part of the model and other rows of the batch; ranks of `pipeline` hold other
    stages for the same rows; ranks of `tensor` hold other parts of the same layers. A rank's number in a group is
    its coordinate.
    """

    mesh: Mesh
    world: Group
    data: Group
    pipeline: Group
    tensor: Group
    waiting: Waiting = field(default_factory=Waiting)

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
    data, pipeline, tensor = mesh.coordinates(world.rank)
    return Ranks(
        mesh,
        world,
        data=world.split(pipeline * mesh.tensor + tensor, data),
        pipeline=world.split(data * mesh.tensor + tensor, pipeline),
        tensor=world.split(data * mesh.pipeline + pipeline, tensor),
    )
