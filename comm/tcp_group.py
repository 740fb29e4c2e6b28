"""Group over TCP: one or more connections per pair of ranks and lane, schedules as data (comm/schedules), no pickle.

Bytes on a connection come in the order of the schedule, so they carry no tags; each operation begins with a header of
one cache line, which the other side compares with its own call before it takes any payload. A further connection per
pair carries heartbeats, written and read by the watch thread: a rank that ends is seen at once, a
dead link after 5 s without an acknowledgement (TCP_USER_TIMEOUT), and a rank that is merely stopped is neither.
"""

from __future__ import annotations

import ipaddress
import os
import resource
import socket
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.algorithms import SCRATCH_BYTES, SEGMENT_BYTES, Table, all_to_all_plan, choose, plan
from cktrain.comm.call import DTYPE, KIND, Call
from cktrain.comm.engine_group import EngineGroup, MakeOp
from cktrain.comm.group import Group
from cktrain.comm.node import Node, NodeMeeting, share_node
from cktrain.comm.peers import Peers
from cktrain.comm.reduction import BFLOAT16
from cktrain.comm.rendezvous import Rendezvous, find_out_dead_link
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.tuning import Tables

WHERE = "comm.tcp"
_LANES = 3  # synchronous, asynchronous, messages
_WORLD, FIRST_GROUP = 1, 2  # purposes of connections (rendezvous.py)


@dataclass
class Mesh(Peers):
    """The ranks of the world, each with a control connection to every other. Seats are ranks."""

    meeting: Rendezvous = field(kw_only=True)
    control: dict[int, socket.socket] = field(kw_only=True)
    wake_fd: int = field(kw_only=True)
    tables: Tables = field(default_factory=Tables, kw_only=True)
    """Of algorithms, rank 0's."""
    sockets: int = field(default=1, kw_only=True)
    """Per pair of ranks and lane; the same on all ranks."""
    node: Node | None = field(default=None, kw_only=True)
    """The ranks that share this node, where they are used as such (`cktrain.comm.two_level`)."""
    at_close: Callable[[], object] = field(default=lambda: None, kw_only=True)
    """What else ends with the world."""

    def close(self) -> None:
        """Say goodbye on the control connections, and end the threads."""
        self.world.leave()
        self.world.stop()
        for connection in self.control.values():
            connection.close()
        self.meeting.close()
        if self.node is not None:
            self.node.close()
        os.close(self.wake_fd)
        self.at_close()


def join_mesh(
    meeting: Rendezvous,
    *,
    spin: bool,
    engine_core: int | None = None,
    where: str = WHERE,
    node: tuple[NodeMeeting, list[int]] | None = None,
) -> Mesh:
    """Connect with all ranks of the meeting, and begin to watch them.

    Args:
        meeting: of all ranks.
        spin: cores are at least as many as ranks.
        engine_core: core of the comm thread; None: where the process runs.
        where: who speaks in messages.
        node: who has met on this node, and their ranks: they are watched as `cktrain.comm.node` does, and the
            mesh has a `node` in the same world.
    """
    _allow_files(meeting.size * sockets_per_pair(meeting.members))
    met, ranks = node or (None, [meeting.rank])
    others = [r for r in range(meeting.size) if r not in ranks]
    control = {r: sockets[0] for r, sockets in meeting.connect_all(others, _WORLD, 1).items()}
    for connection in control.values():
        find_out_dead_link(connection)
    fd = os.memfd_create("cktrain seats", os.MFD_CLOEXEC)
    os.ftruncate(fd, meeting.size * _engine.SEAT_BYTES)
    seats = _engine.Mapping(fd, meeting.size * _engine.SEAT_BYTES)
    os.close(fd)
    world = _engine.World(
        meeting.rank,
        meeting.rank,
        meeting.size,
        seats,
        spin=spin,
        engine_core=-1 if engine_core is None else engine_core,
    )
    wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if hasattr(os, "eventfd") else -1
    world.wake_by(wake_fd)
    members = [member | {"rank": r} for r, member in enumerate(meeting.members)]
    watched = [(s.fileno(), r, r, _engine.CONTROL) for r, s in control.items()]
    neighbours = None
    if met is not None:
        neighbours = share_node(world, meeting.rank, met, ranks, members)
        watched += neighbours.watch_over()
    mesh = Mesh(
        meeting.rank,
        members,
        world,
        where,
        meeting=meeting,
        control=control,
        wake_fd=wake_fd,
        tables=Tables(meeting.members[0]["tables"]),
        sockets=sockets_per_pair(meeting.members),
        node=neighbours,
    )
    world.watch(watched, [*control.values(), *(neighbours.sockets.values() if neighbours else ())])
    if neighbours is not None:
        neighbours.exchange_bells(wake_fd, meeting.timeout_s)
    _let_children_go(mesh)
    return mesh


def _let_children_go(mesh: Mesh) -> None:
    """A forked child closes its copies of the control connections and of the door: it must not keep them open when this
    process ends."""
    known = weakref.ref(mesh)

    def close() -> None:
        if (ours := known()) is not None:
            for connection in ours.control.values():
                connection.close()
            ours.meeting.close()

    os.register_at_fork(after_in_child=close)


def _allow_files(connections: int) -> None:
    """Raise this process's limit of open files as far as it may be, where many connections come near to it."""
    wanted = 1024 + 8 * _LANES * connections  # of several groups, each with descriptors to sleep on
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < wanted:  # below 0: there is none
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard >= 0 else wanted, hard))


def sockets_per_pair(members: Sequence[dict[str, Any]]) -> int:
    """What rank 0 was told (`comm.tcp_sockets`), or two between hosts: one connection is one queue of a network card,
    and one core's work for the receiving kernel. Inside a host one is as fast as several."""
    inside = all(ipaddress.ip_address(member["address"]).is_loopback for member in members)
    return int(members[0]["sockets"]) or (1 if inside else 2)


class TcpGroup(EngineGroup):
    """A group whose bytes travel by TCP."""

    def __init__(
        self,
        mesh: Mesh,
        seats: Sequence[int],
        name: str,
        timeout_s: float,
        *,
        ancestors: Sequence[int] = (),
        purpose: int = FIRST_GROUP,
        table: Table | None = None,
        algorithm: str | None = None,
    ):
        """Make the group of the ranks in `seats`, in this order; all of them call it.

        Args:
            mesh: the world, which outlives the group; the first group, without ancestors, closes it.
            seats: the members' world ranks.
            name: for messages.
            timeout_s: deadline of every wait, seconds.
            ancestors: numbers of the groups that it was split from.
            purpose: what its connections are told apart by; the same on all members, and no other group's of theirs.
            table: which algorithm for which length; None: by the tables of the mesh.
            algorithm: one that is preferred whatever the length.
        """
        super().__init__(mesh, seats, name, timeout_s, ancestors)
        self._mesh, self._purpose, self._algorithm = mesh, purpose, algorithm
        nodes = {mesh.members[seat].get("node") for seat in seats}
        self.node_count = len(nodes)
        """On how many nodes its ranks are."""
        self._table = table or mesh.tables.pick(self.transport, self.node_count, self.size)
        self._splits = 0
        self._connect(purpose)

    def prefer(self, algorithm: str | None) -> None:
        """Use this algorithm from now on where it can be, instead of the table's; all ranks call it."""
        self._algorithm = algorithm

    # What differs where other links than sockets carry the bytes.

    transport = "tcp"
    """As in `comm.transport`."""

    @property
    def node(self) -> Node | None:
        """The ranks that share this rank's node, where they are used as such."""
        return self._mesh.node

    moved_by_caller = False
    """Whether asynchronous operations get on only while the caller asks or waits."""

    segment_bytes = SEGMENT_BYTES
    """How much of a rank's part travels at a time."""

    scratch_bytes = SCRATCH_BYTES
    """How much a lane works in at most: with many ranks segments are shorter."""

    def prepare(self, memory: np.ndarray) -> None:
        """Make memory that this rank has from elsewhere fit to be sent from and received into."""

    def _connect(self, purpose: int) -> None:
        """Make the links, and the lanes of collectives over them."""
        k, others = self._mesh.sockets, [s for s in self._seats if s != self._mesh.seat]
        found = self._mesh.meeting.connect_all(others, purpose, _LANES * k)
        self._connections = [
            [found[s][lane * k : (lane + 1) * k] if s in found else None for s in self._seats]
            for lane in range(_LANES)
        ]
        self._lane, self._engine_lane = (
            _engine.Wire(self._mesh.world, self.rank, sockets, self._seats)
            for sockets in self._connections[:2]
        )

    def _part(self, seats: list[int], name: str, purpose: int) -> TcpGroup:
        """The group of some of the ranks."""
        return TcpGroup(
            self._mesh,
            seats,
            name,
            self.timeout_s,
            ancestors=self._lineage,
            purpose=purpose,
            algorithm=self._algorithm,
        )

    def _disconnect(self) -> None:
        for sockets in self._connections:
            for connection in (one for several in sockets for one in several or ()):
                connection.close()

    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color`, ordered by (key, rank)."""
        members, name = self._gather_members(color, key)
        self._splits += 1
        if len(members) == 1:
            return SoloGroup(name, self.timeout_s)
        # Of all groups that two ranks share, this one alone has this number of splits below this purpose.
        purpose = (self._purpose * 1009 + self._splits) % (1 << 32)
        return self._part([self._seats[rank] for rank in members], name, purpose)

    def _make(self, call: Call) -> MakeOp:
        itemsize = call.input.itemsize
        algorithm = ""
        if call.kind in self._table:
            canonical = call.op == "mean" or call.input.dtype == BFLOAT16
            nbytes = call.count * itemsize
            algorithm = choose(call.kind, nbytes, self._table, self._algorithm, canonical=canonical)
        parts = None
        if call.all_to_all is not None:
            parts, made = call.all_to_all.parts, all_to_all_plan(call.all_to_all)
        else:
            made = plan(
                call.kind,
                algorithm,
                self.rank,
                self.size,
                call.count,
                None if call.begins is None else tuple(call.begins),
                call.root,
                itemsize,
                self.segment_bytes,
                self.scratch_bytes,
            )
        steps, sources, scratch, partners = made
        given = (*call.header(), *call.addresses(), steps, sources, scratch * itemsize, partners)
        kept = (call.input, call.output)
        return lambda lane, own: lane.make(*given, kept, parts)

    def _stream(self, peer: int, sends: bool) -> _engine.Wire:
        sockets = [s if r == peer else None for r, s in enumerate(self._connections[2])]
        return _engine.Wire(self._mesh.world, self.rank, sockets, self._seats)

    def _make_message(self, stream: _engine.Wire, array: np.ndarray, peer: int, sends: bool) -> _engine.Op:
        # Both ends call it a send, so that the headers agree; only one goes.
        steps = np.array([(0, 0 if sends else 1, peer, 0, 0, array.size, 0, 0)], np.int64)
        partners = bytes((1 if sends else 2) if r == peer else 0 for r in range(self.size))
        address = array.ctypes.data
        return stream.make(
            KIND["send"],
            DTYPE[array.dtype],
            0,
            -1,
            array.size,
            0,
            address,
            address,
            steps,
            _NO_SOURCES,
            0,
            partners,
            array,
        )


_NO_SOURCES = np.empty((0, 2), np.int64)
