"""Group of ranks of one node, over memory that all of them map. The protocol stands in csrc/shm.h.

A group has two lanes: synchronous collectives run in the caller on one, asynchronous ones on the engine's thread on
the other, each lane in the order of the calls; so a small synchronous reduction passes by large buckets under way.
Messages between two ranks have a stream of their own; the caller moves it itself while the engine has none of it.

Arrays in memory from `allocate` are reduced in place (every rank reads all ranks' arrays and writes its part to
all); other arrays pass through stages. Which way is taken is seen from what the ranks write at the arrival, so
all take the same, and the result does not depend on it.
"""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.errors import CollectiveMismatchError, CollectiveTimeoutError, CommError, PeerLostError
from cktrain.comm.group import Group
from cktrain.comm.node import Node, new_memory
from cktrain.comm.patience import Patience
from cktrain.comm.reduction import DTYPES, OPS
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import CompletedWork, Work

_WHERE = "comm.shm"
_STAGE_BYTES = 512 << 10
_RING_BYTES = 256 << 10
_SLICE_S = 0.05

_KIND = {kind: number for number, kind in enumerate(_engine.KINDS)}
_OP = {op: number for number, op in enumerate(OPS)}
_DTYPE = {dtype: number for number, dtype in enumerate(DTYPES)}
_DTYPE_NAMES = [str(dtype) for dtype in DTYPES] + ["bytes"]
_BYTES = np.dtype(np.uint8)
_DTYPE[_BYTES] = _engine.BYTES_DTYPE
_DONE = CompletedWork()

_engine.register_dtypes(
    [
        [d.num] if d.kind != "i" else [np.dtype(c).num for c in "ilq" if np.dtype(c).itemsize == d.itemsize]
        for d in DTYPES
    ]
)


class ShmGroup(Group):
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
        super().__init__(list(seats).index(node.seat), len(seats), name, timeout_s)
        self._node, self._seats = node, list(seats)
        node.groups += 1
        self._number = node.groups
        self._lineage = [self._number, *ancestors]
        self._is_world = not ancestors
        self._stage_bytes, self._ring_bytes = stage_bytes, ring_bytes
        self._failure: CommError | None = None
        self._closed = False
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
        self._streams: dict[tuple[int, bool], _engine.Stream] = {}

    # Memory.

    def allocate(self, nbytes: int) -> np.ndarray:
        """Memory of which all ranks of the group can read, and reduce, slices in place."""
        self._raise_if_unusable("allocate")
        fd = new_memory("arena", max(1, nbytes))
        own = _engine.Mapping(fd, max(1, nbytes))
        own.make_huge(True)
        others = [seat for seat in self._seats if seat != self._node.seat]
        for seat in others:  # descriptors are small messages: handing never waits for the taker
            self._node.hand(seat, fd, own.nbytes, self._number)
        os.close(fd)
        mappings = {self._node.seat: own} | {seat: self._take(seat, self._number) for seat in others}
        for seat in others:
            mappings[seat].make_huge(False)
        # Every member counts its arenas alike only if they make the same calls; the exchange is also the barrier.
        number = self._node.world.add_arena(list(mappings.values()), self._number, list(mappings))
        numbers = {struct.unpack("<q", x)[0] for x in self.all_gather_bytes(struct.pack("<q", number))}
        assert len(numbers) == 1, numbers
        return np.frombuffer(own, np.uint8)[:nbytes]

    def use_reduction(self, capsule: object) -> None:
        """Reduce with this function from now on."""
        if capsule is not None:
            self._node.world.set_reduction(capsule)

    def _take(self, seat: int, tag: int) -> _engine.Mapping:
        fd, nbytes = self._node.take(seat, tag, self.timeout_s)
        try:
            return _engine.Mapping(fd, nbytes)
        finally:
            os.close(fd)

    def _share(self, nbytes: int) -> _engine.Mapping:
        """Memory that the group's rank 0 makes and all map; it is untouched, so it costs nothing until used."""
        tag = zlib.crc32(f"{self.name} {self._seats}".encode())
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
        if not async_ and self._failure is None and not self._closed and op in _OP:
            got = self._lane.all_reduce(array, _OP[op])
            if got is True:
                return _DONE
            if got is not None:
                self._run(got, self._lane)
                return _DONE
        return super().all_reduce(array, op, async_)

    # Control data.

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's `data`, in the order of ranks."""
        lengths = np.empty(self.size, np.int64)
        self._start(
            "all_gather", self.size, lengths, np.array([len(data)], np.int64), range(self.size + 1)
        ).wait()
        begins = [0, *accumulate(int(n) for n in lengths)]
        every = np.empty(begins[-1], np.uint8)
        self._start("all_gather", begins[-1], every, np.frombuffer(data, np.uint8), begins).wait()
        return [every[begins[r] : begins[r + 1]].tobytes() for r in range(self.size)]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return rank `root`'s `data` on every rank."""
        self._check_rank("broadcast_bytes", "root", root)
        length = np.array([len(data)], np.int64)
        self._start("broadcast", 1, length, length, root=root).wait()
        buffer = np.frombuffer(data, np.uint8) if self.rank == root else np.empty(int(length[0]), np.uint8)
        self._start("broadcast", buffer.size, buffer, buffer, root=root).wait()
        return buffer.tobytes()

    # Membership and lifetime.

    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color`, ordered by (key, rank)."""
        self._check_color(color)
        answers = [struct.unpack("<qq", x) for x in self.all_gather_bytes(struct.pack("<qq", color, key))]
        members = sorted((k, rank) for rank, (c, k) in enumerate(answers) if c == color)
        name = f"{self.name}.{color}"
        if len(members) == 1:
            return SoloGroup(name, self.timeout_s)
        return ShmGroup(
            self._node,
            [self._seats[rank] for _, rank in members],
            name,
            self.timeout_s,
            ancestors=self._lineage,
            stage_bytes=self._stage_bytes,
            ring_bytes=self._ring_bytes,
        )

    def close(self) -> None:
        """End the use of this group; the world's close also ends the threads and the watch over the other ranks."""
        if self._closed:
            return
        for work in [work for work in self._node.live if work.group is self]:
            work.wait()
        self.barrier()
        self._closed = True
        while not all(on.idle for on in (self._engine_lane, *self._streams.values())):
            time.sleep(0)  # the engine has ended the last operation and is about to let go of its queue
        if self._is_world:
            self._node.close()

    def abort(self, code: int) -> NoReturn:
        """End this process; the others see it end, and raise PeerLostError."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # Start the operations.

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        return self._start("all_reduce", array.size, array, array, op=op, read=array.nbytes)

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        begins = [0, *accumulate(counts)]
        extra = _checksum(counts)
        return self._start(
            "reduce_scatter", input.size, output, input, begins, op=op, read=input.nbytes, extra=extra
        )

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        begins = [0, *accumulate(counts)]
        extra = _checksum(counts)
        return self._start("all_gather", output.size, output, input, begins, read=input.nbytes, extra=extra)

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        return self._start("broadcast", array.size, array, array, root=root, read=array.nbytes)

    def _all_to_all(self, output: np.ndarray, input: np.ndarray) -> Work:
        part = input.size // self.size
        begins = [r * part for r in range(self.size + 1)]
        return self._start("all_to_all", input.size, output, input, begins, read=input.nbytes)

    def _barrier(self) -> Work:
        nothing = np.empty(0, np.uint8)
        return self._start("barrier", 0, nothing, nothing)

    def _send(self, array: np.ndarray, to: int) -> Work:
        return self._message(array, to, sends=True)

    def _recv(self, array: np.ndarray, source: int) -> Work:
        return self._message(array, source, sends=False)

    def _start(
        self,
        kind: str,
        count: int,
        output: np.ndarray,
        input: np.ndarray,
        begins: Sequence[int] | None = None,
        *,
        op: str = "sum",
        root: int = -1,
        read: int = 0,
        extra: int = 0,
    ) -> ShmWork:
        self._raise_if_unusable(kind)
        return ShmWork(
            self,
            lambda lane, own: lane.make(
                _KIND[kind],
                _DTYPE[input.dtype],
                _OP[op],
                root,
                count,
                extra,
                input.ctypes.data,
                output.ctypes.data,
                begins,
                read,
                (input, output),
                own,
            ),
        )

    def _message(self, array: np.ndarray, peer: int, sends: bool) -> ShmWork:
        self._raise_if_unusable("send" if sends else "recv")
        stream = self._streams.get((peer, sends))
        if stream is None:
            source, to = (self.rank, peer) if sends else (peer, self.rank)
            at = self._rings_at + (source * self.size + to) * _engine.Stream.bytes_needed(self._ring_bytes)
            stream = _engine.Stream(self._node.world, self._memory, at, self._ring_bytes, self._seats[peer])
            self._streams[peer, sends] = stream
        op = stream.make(sends, _DTYPE[array.dtype], array.size, array.ctypes.data, array)
        return ShmWork(self, None, op, stream, peer)

    def _raise_if_unusable(self, call: str) -> None:
        if self._closed:
            raise ValueError(f"[comm.{self.name}] {call}: the group is closed. Call it before close().")
        if self._failure is not None:
            raise self._failure

    # Waiting and failing.

    def _run(self, op: _engine.Op, on: Any, peer: int | None = None) -> None:
        """Run an operation in the caller to its end."""
        self._patiently(op.run, op, on, peer, None)

    def _patiently(
        self, turn: Callable[[float], int], op: _engine.Op, on: Any, peer: int | None, timeout: float | None
    ) -> None:
        """Take turns of a wait until it ends well, or raise how it ended."""
        patience = Patience(self.timeout_s if timeout is None else timeout, stretch=timeout is None)
        try:
            while (state := turn(min(_SLICE_S, patience.timeout_s))) == _engine.PENDING:
                missing = [peer] if peer is not None else on.missing(op)
                if gone := [r for r in missing if self._node.world.seat(self._seats[r])[4]]:
                    raise self._fail(self._gone(gone[0], self._spell(op, on, peer)))
                shown = {r: self._node.world.seat(self._seats[r])[:2] for r in missing}
                if not patience.look(shown, lambda ranks: self._stall(self._spell(op, on, peer), ranks)):
                    error = CollectiveTimeoutError(
                        _WHERE,
                        self.rank,
                        f"{self._spell(op, on, peer)} on group {self.name}",
                        patience.timeout_s,
                        missing,
                    )
                    raise error if timeout is not None else self._fail(error)
        except KeyboardInterrupt:
            self._break_off()
            raise
        if state != _engine.DONE:
            raise self._failed(state, op, on, peer)

    def _failed(self, state: int, op: _engine.Op, on: Any, peer: int | None) -> CommError:
        """The error of an operation that ended with `state`."""
        if self._failure is not None:
            return self._failure
        if state == _engine.MISMATCH:
            if peer is None:
                calls = {r: _spell(*call) for r, call in on.calls(op).items()}
                mine = calls.pop(self.rank)
                differing = {r: call for r, call in calls.items() if call != mine}
            else:
                mine, differing = self._spell(op, on, peer), {peer: self._refused(op, on)}
            return self._fail(CollectiveMismatchError(_WHERE, self.rank, mine, differing))
        lost = self._node.lost(f"{self._spell(op, on, peer)} on group {self.name}")
        assert lost is not None, state
        return self._fail(lost)

    def _spell(self, op: _engine.Op, on: Any, peer: int | None) -> str:
        kind, dtype, reduction, root, count, extra = op.call
        if peer is not None:
            return f"{_engine.KINDS[kind]}({_DTYPE_NAMES[dtype]}[{count:,}], {'to' if op.sends else 'source'}={peer})"
        return _spell(kind, dtype, reduction, root, count, extra)

    @staticmethod
    def _refused(op: _engine.Op, stream: Any) -> str:
        if op.sends:
            dtype, count = stream.refused
            return f"recv({_DTYPE_NAMES[dtype]}[{count:,}])"
        dtype, count = op.came
        return f"send({_DTYPE_NAMES[dtype]}[{count:,}])"

    def _stall(self, call: str, ranks: list[int]) -> str:
        parts = []
        for r in ranks:
            _, _, kind, number, _ = self._node.world.seat(self._seats[r])
            member = self._node.members[self._seats[r]]
            parts.append(f"rank {member['rank']} on {member['host']} (last operation: {kind} {number})")
        return f"[{_WHERE}] rank {self._node.world.rank} waits in {call} on group {self.name} for {', '.join(parts)}"

    def _gone(self, rank: int, call: str) -> PeerLostError:
        member = self._node.members[self._seats[rank]]
        return PeerLostError(
            _WHERE, member["rank"], member["host"], f"{call} on group {self.name}", "it closed its groups",
            self._node.world.rank,
        )  # fmt: skip

    def _fail(self, error: CommError) -> CommError:
        self._failure = error
        self._break_off()
        return error

    def _break_off(self) -> None:
        """Let the engine drop the group's operations: no thread of this process touches their arrays again."""
        for on in (self._lane, self._engine_lane, *self._streams.values()):
            on.break_off()


class ShmWork(Work):
    """An operation of a ShmGroup. It begins when the group says whether it is waited for at once."""

    def __init__(
        self,
        group: ShmGroup,
        make: Callable[[Any, bool], _engine.Op] | None,
        op: Any = None,
        on: Any = None,
        peer: int | None = None,
    ):
        self.group, self._make, self._op, self._on, self._peer = group, make, op, on, peer
        self._complete = False
        self._submitted = False

    def begin(self) -> None:
        """Hand it to the engine."""
        if self._make is not None:
            self._on = self.group._engine_lane
            self._op, self._make = self._make(self._on, True), None
        # What the engine works on must live on, whatever the caller drops.
        node = self.group._node
        node.live = [work for work in node.live if not work.ended()]
        node.live.append(self)
        self._submitted = True
        self._op.submit()

    def ended(self) -> bool:
        """Whether nothing touches its arrays any more."""
        return self._complete or (self._submitted and self._op.state != _engine.PENDING)

    def done(self) -> bool:
        """Say whether it is complete; the engine moves it."""
        if not self._complete and self._submitted:
            state = self._op.state
            if state not in (_engine.PENDING, _engine.DONE):
                raise self.group._failed(state, self._op, self._on, self._peer)
            self._complete = state == _engine.DONE
        return self._complete

    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds, or the group's deadline."""
        if self._complete:
            return
        if not self._submitted:
            self._run_in_caller()
        else:
            self.group._patiently(self._op.wait, self._op, self._on, self._peer, timeout)
        self._complete = True

    def _run_in_caller(self) -> None:
        if self._make is not None:
            self._on = self.group._lane
            self._op, self._make = self._make(self._on, False), None
        elif self._on.pending:  # messages before this one are the engine's; it keeps their order
            self.begin()
            self.group._patiently(self._op.wait, self._op, self._on, self._peer, None)
            return
        self.group._run(self._op, self._on, self._peer)


def _spell(kind: int, dtype: int, op: int, root: int, count: int, extra: int) -> str:
    """A call as a person would write it."""
    name = _engine.KINDS[kind]
    if name == "barrier":
        return name
    words = [f"{_DTYPE_NAMES[dtype]}[{count:,}]"]
    if name in ("all_reduce", "reduce_scatter"):
        words.append(OPS[op])
    if root >= 0:
        words.append(f"root={root}")
    if extra:
        words.append(f"counts #{extra:08x}")
    return f"{name}({', '.join(words)})"


def _checksum(counts: Sequence[int]) -> int:
    return zlib.crc32(np.asarray(counts, np.int64).tobytes())
