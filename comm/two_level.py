"""How ranks on several nodes come together as a `TwoLevelGroup`.

Over TCP one world holds all ranks: those of this node show their heartbeats in shared memory, the others send theirs; one
engine moves both kinds of operations. Over MPI the node has a world of its own, and MPI's groups join the nodes.
Groups that are not in two levels (`cktrain.comm.layout.why_flat`) are the network's alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

from cktrain.comm import _engine
from cktrain.comm.group import Group
from cktrain.comm.layout import node_name, nodes_of
from cktrain.comm.node import NodeMeeting, meet_on_node, share_node
from cktrain.comm.rendezvous import Rendezvous
from cktrain.comm.tcp_group import TcpGroup
from cktrain.comm.two_level_group import TwoLevelGroup


def over_wires(
    meeting: Rendezvous,
    timeout_s: float,
    make_flat: Callable[[tuple[NodeMeeting, list[int]] | None], TcpGroup],
) -> Group:
    """The world of the ranks of a meeting.

    Args:
        meeting: of all ranks, which have told the names of their nodes.
        timeout_s: deadline of every wait, seconds.
        make_flat: makes the group of all ranks over the network, given who has met on this node and their ranks
            (as `join_mesh` takes it), or None.
    """
    names = [member["node"] for member in meeting.members]
    nodes = nodes_of(names)
    if max(len(node) for node in nodes) == 1 or len(nodes) == 1:
        return make_flat(None)
    here = next(node for node in nodes if meeting.rank in node)
    leader = meeting.members[here[0]]
    met = meet_on_node(
        f"{leader['pid']}-{leader['address']}-{leader['port']}",
        meeting.rank,
        here.index(meeting.rank),
        len(here),
        timeout_s,
    )
    flat = make_flat((met, here))
    node = flat.node
    assert node is not None
    return TwoLevelGroup(flat, node, range(meeting.size), names)


def over_mpi(flat: Group, timeout_s: float, environ: Mapping[str, str], engine_core: int | None) -> Group:
    """The world of MPI's ranks, which `flat` joins."""
    mine = json.dumps([node_name(environ), os.urandom(8).hex()]).encode()
    told = [json.loads(text) for text in flat.all_gather_bytes(mine)]
    names = [name for name, _ in told]
    nodes = nodes_of(names)
    if max(len(node) for node in nodes) == 1 or len(nodes) == 1:
        return flat
    here = next(node for node in nodes if flat.rank in node)
    local_rank = here.index(flat.rank)
    met = meet_on_node(told[here[0]][1], flat.rank, local_rank, len(here), timeout_s)
    fd = os.memfd_create("cktrain seats", os.MFD_CLOEXEC)
    os.ftruncate(fd, flat.size * _engine.SEAT_BYTES)
    seats = _engine.Mapping(fd, flat.size * _engine.SEAT_BYTES)
    os.close(fd)
    world = _engine.World(
        flat.rank,
        flat.rank,
        flat.size,
        seats,
        spin=met.cores >= len(here),
        engine_core=-1 if engine_core is None else engine_core,
    )
    members = [{"rank": rank, "host": names[rank].split()[0]} for rank in range(flat.size)]
    node = share_node(world, flat.rank, met, here, members)
    world.watch(node.watch_over(), node.sockets.values())
    return TwoLevelGroup(flat, node, range(flat.size), names, at_close=node.close)
