"""Group of ranks of one node, over memory that all of them map. The protocol stands in csrc/shm.h.

Arrays in memory from `allocate` are reduced in place (every rank reads all ranks' arrays and writes its part to
all); other arrays pass through stages. Which way is taken is seen from what the ranks write at the arrival, so
all take the same, and the result does not depend on it.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.call import DTYPE, OP, Call
from cktrain.comm.engine_group import EngineGroup, MakeOp
from cktrain.comm.group import Group
from cktrain.comm.node import Node, new_memory
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import CompletedWork, Work

_STAGE_BYTES = 512 << 10
_RING_BYTES = 256 << 10
_DONE = CompletedWork()


class ShmGroup(EngineGroup):
    """A group whose ranks share the memory of one node."""

    def __init__(
        self,
        node: Node,
        seats: Sequence[int],
        name: str,
        timeout_s: float,
        *,
        ancestors: Sequence[int] = (),
        stage_bytes: int = _STAGE_BYTES,
        ring_bytes: int = _RING_BYTES,
    ):
        """Make the group of the ranks in `seats`, in this order; all of them call it.

        Args:
            node: the node, which outlives the group; the first group, without ancestors, closes it.
            seats: the members.
            name: for messages.
            timeout_s: deadline of every wait, seconds.
            ancestors: numbers of the groups that it was split from.
            stage_bytes: how much of an array that is not in shared memory is under way at a time, per rank.
            ring_bytes: how much of a message is.
        """
        super().__init__(node, seats, name, timeout_s, ancestors)
        self._node = node
        self._stage_bytes, self._ring_bytes = stage_bytes, ring_bytes
        lane = _engine.Lane.bytes_needed(self.size, stage_bytes)
        ring = _engine.Stream.bytes_needed(ring_bytes)
        self._rings_at = 2 * lane
        self._memory = self._share(2 * lane + self.size**2 * ring)
        self._lane, self._engine_lane = (
            _engine.Lane(
                node.world, self.rank, self._seats, self._memory, i * lane, stage_bytes, self._lineage
            )
            for i in range(2)
        )

    # Memory.

    def allocate(self, nbytes: int) -> np.ndarray:
        """Memory of which all ranks of the group can read, and reduce, slices in place."""
        self._raise_if_unusable("allocate")
        world, tag = self._node.world, self._tag()
        number = world.next_arena()
        numbers = [struct.unpack("<q", x)[0] for x in self.all_gather_bytes(struct.pack("<q", number))]
        fd = new_memory("arena", max(1, nbytes))
        own = _engine.Mapping(fd, max(1, nbytes))
        own.make_huge(True)
        others = [(r, seat) for r, seat in enumerate(self._seats) if r != self.rank]
        for _, seat in others:  # descriptors are small messages: handing never waits for the taker
            self._node.hand(seat, fd, own.nbytes, tag)
        os.close(fd)
        for r, seat in others:
            theirs = self._take(seat, tag)
            theirs.make_huge(False)
            world.put_arena(seat, numbers[r], theirs)
        world.add_arena(own, self._number)
        return np.frombuffer(memoryview(own), np.uint8)[:nbytes]

    def _tag(self) -> int:
        """The same on all members, so that memory of one group is not taken for another's."""
        return zlib.crc32(f"{self.name} {self._seats}".encode())

    def _take(self, seat: int, tag: int) -> _engine.Mapping:
        fd, nbytes = self._node.take(seat, tag, self.timeout_s)
        try:
            return _engine.Mapping(fd, nbytes)
        finally:
            os.close(fd)

    def _share(self, nbytes: int) -> _engine.Mapping:
        """Memory that the group's rank 0 makes and all map; it is untouched, so it costs nothing until used."""
        tag = self._tag()
        if self.rank != 0:
            return self._take(self._seats[0], tag)
        fd = new_memory(f"group {self.name}", nbytes)
        try:
            for seat in self._seats[1:]:
                self._node.hand(seat, fd, nbytes, tag)
            return _engine.Mapping(fd, nbytes)
        finally:
            os.close(fd)

    # The most frequent call has a short way.

    def all_reduce(self, array: np.ndarray, op: str = "sum", async_: bool = False) -> Work:
        """As Group's; a plain array with a known op goes straight to the lane."""
        if not async_ and self._failure is None and not self._closed and op in OP:
            got = self._lane.all_reduce(array, OP[op])
            if got is True:
                return _DONE
            if got is not None:
                self._run(got, self._lane)
                return _DONE
        return super().all_reduce(array, op, async_)

    # Membership.

    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color`, ordered by (key, rank)."""
        members, name = self._gather_members(color, key)
        if len(members) == 1:
            return SoloGroup(name, self.timeout_s)
        return ShmGroup(
            self._node,
            [self._seats[rank] for rank in members],
            name,
            self.timeout_s,
            ancestors=self._lineage,
            stage_bytes=self._stage_bytes,
            ring_bytes=self._ring_bytes,
        )

    # Operations.

    def _make(self, call: Call) -> MakeOp:
        given, kept = (*call.header(), *call.addresses(), call.begins, call.read), (call.input, call.output)
        parts = None if call.all_to_all is None else call.all_to_all.parts
        return lambda lane, own: lane.make(*given, kept, own, parts)

    def _stream(self, peer: int, sends: bool) -> _engine.Stream:
        source, to = (self.rank, peer) if sends else (peer, self.rank)
        at = self._rings_at + (source * self.size + to) * _engine.Stream.bytes_needed(self._ring_bytes)
        return _engine.Stream(self._node.world, self._memory, at, self._ring_bytes, self._seats[peer])

    def _make_message(self, stream: _engine.Stream, array: np.ndarray, peer: int, sends: bool) -> _engine.Op:
        return stream.make(sends, DTYPE[array.dtype], array.size, array.ctypes.data, array)
