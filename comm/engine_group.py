"""What groups on the compiled engine have in common: shared memory and sockets differ only in how an operation is made.

A group has two lanes: synchronous collectives run in the caller on one, asynchronous ones on the engine's thread on
the other, each lane in the order of the calls; so a small synchronous reduction passes by large buckets under way.
Messages between two ranks have streams of their own; the caller moves one itself while the engine has none of it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np

from cktrain.comm import _engine, mismatch
from cktrain.comm.all_to_all import all_to_all_of
from cktrain.comm.call import KIND, Call, checksum, spell
from cktrain.comm.errors import CollectiveMismatchError, CollectiveTimeoutError, CommError, PeerLostError
from cktrain.comm.group import Group
from cktrain.comm.patience import Patience
from cktrain.comm.peers import Peers
from cktrain.comm.standstill import Standstill
from cktrain.comm.work import Work

_SLICE_S = 0.05
_HEARSAY_S = 2.0
_UNNAMED = "two other ranks have different counts for what passes between them"
_SYNCHRONOUS, _ASYNCHRONOUS, _MESSAGES = range(3)  # lanes, as ranks speak of them

MakeOp = Callable[[Any, bool], _engine.Op]
"""(lane, whether it is for the engine) -> operation."""


class EngineGroup(Group):
    """A group whose operations the compiled engine moves."""

    def __init__(
        self, peers: Peers, seats: Sequence[int], name: str, timeout_s: float, ancestors: Sequence[int]
    ):
        """The group of the ranks in `seats`, in this order; without `ancestors` it is the world and closes `peers`."""
        super().__init__(list(seats).index(peers.seat), len(seats), name, timeout_s)
        self._peers, self._seats, self._where = peers, list(seats), peers.where
        peers.groups += 1
        self._number = peers.groups
        # All its ranks make it, and those with the same ranks in the same order: so this is its name on all of them.
        kind = f"{type(self).__name__} {self._seats}"
        peers.alike[kind] += 1
        digest = hashlib.blake2b(f"{kind} {peers.alike[kind]}".encode(), digest_size=8).digest()
        self._key = self._whole = int.from_bytes(digest, "little") or 1
        peers.world.groups[self._key] = self
        self._lineage = [self._number, *ancestors]
        self._is_world = not ancestors
        self._failure: CommError | None = None
        self._closed = False
        self._lane: Any = None
        self._engine_lane: Any = None
        self._streams: dict[tuple[int, bool], Any] = {}
        self._outer = self._seats
        self._mates: dict[int, list[int]] = {}

    def belong_to(self, seats: Sequence[int], mates: dict[int, list[int]], whole: Group) -> None:
        """This group does a part of a larger one's operations: its errors speak of that one's ranks.

        Args:
            seats: of the larger group.
            mates: for a rank of this group, the seats of ranks that it may be waiting for itself; as long as one of
                them is at work it is not late.
            whole: what the ranks of the larger group are told of as the one that they wait in.
        """
        self._outer, self._mates = list(seats), mates
        if isinstance(whole, EngineGroup):
            self._whole = whole._key

    def _shown(self, rank: int) -> int:
        """The rank by which errors name a rank of this group."""
        return self._outer.index(self._seats[rank])

    def _signs(self, rank: int) -> tuple[int, int]:
        """Heartbeat and activity of a rank: numbers that grow."""
        beat, activity = self._peers.world.seat(self._seats[rank])[:2]
        return beat, activity + sum(self._peers.world.seat(seat)[1] for seat in self._mates.get(rank, ()))

    # What a kind of group adds.

    @abstractmethod
    def _make(self, call: Call) -> MakeOp: ...

    @abstractmethod
    def _stream(self, peer: int, sends: bool) -> Any: ...

    def _disconnect(self) -> None:
        """No operation will be begun: give back what carried their bytes."""

    @abstractmethod
    def _make_message(self, stream: Any, array: np.ndarray, peer: int, sends: bool) -> _engine.Op: ...

    def _gather_members(self, color: int, key: int) -> tuple[list[int], str]:
        """The ranks that gave the same color, ordered by (key, rank), and the name of their group."""
        self._check_color(color)
        answers = [struct.unpack("<qq", x) for x in self.all_gather_bytes(struct.pack("<qq", color, key))]
        members = sorted((k, rank) for rank, (c, k) in enumerate(answers) if c == color)
        return [rank for _, rank in members], f"{self.name}.{color}"

    def use_reduction(self, capsule: object) -> None:
        """Reduce with this function from now on."""
        if capsule is not None:
            self._peers.world.set_reduction(capsule)

    # Control data.

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's `data`, in the order of ranks."""
        lengths = np.empty(self.size, np.int64)
        self._start(
            Call("all_gather", self.size, lengths, np.array([len(data)], np.int64), range(self.size + 1))
        ).wait()
        begins = [0, *accumulate(int(n) for n in lengths)]
        every = np.empty(begins[-1], np.uint8)
        self._start(Call("all_gather", begins[-1], every, np.frombuffer(data, np.uint8), begins)).wait()
        return [every[begins[r] : begins[r + 1]].tobytes() for r in range(self.size)]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return rank `root`'s `data` on every rank."""
        self._check_rank("broadcast_bytes", "root", root)
        length = np.array([len(data)], np.int64)
        self._start(Call("broadcast", 1, length, length, root=root)).wait()
        buffer = np.frombuffer(data, np.uint8) if self.rank == root else np.empty(int(length[0]), np.uint8)
        self._start(Call("broadcast", buffer.size, buffer, buffer, root=root)).wait()
        return buffer.tobytes()

    # Lifetime.

    def close(self) -> None:
        """End the use of this group; the world's close also ends the threads and the watch over the other ranks."""
        if self._closed:
            return
        for work in [work for work in self._peers.live if work.group is self]:
            work.wait()
        self.barrier()
        self._closed = True
        while not all(on.idle for on in (self._engine_lane, *self._streams.values())):
            time.sleep(0)  # the engine has ended the last operation and is about to let go of its queue
        self._disconnect()
        if self._is_world:
            self._peers.close()

    def abort(self, code: int) -> NoReturn:
        """End this process; the others see it end, and raise PeerLostError."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # Start the operations.

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        return self._start(Call("all_reduce", array.size, array, array, op=op, read=array.nbytes))

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        begins = [0, *accumulate(counts)]
        extra = checksum(counts)
        return self._start(
            Call("reduce_scatter", input.size, output, input, begins, op=op, read=input.nbytes, extra=extra)
        )

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        begins = [0, *accumulate(counts)]
        extra = checksum(counts)
        return self._start(
            Call("all_gather", output.size, output, input, begins, read=input.nbytes, extra=extra)
        )

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        return self._start(Call("broadcast", array.size, array, array, root=root, read=array.nbytes))

    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work:
        return self._start(self.all_to_all_call(output, input, output_counts, input_counts))

    def all_to_all_call(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Call:
        """An all_to_all of this group."""
        made = all_to_all_of(self.rank, tuple(input_counts), tuple(output_counts))
        return Call(
            "all_to_all", input.size, output, input, read=input.nbytes, extra=made.balance, all_to_all=made
        )

    def _barrier(self) -> Work:
        nothing = np.empty(0, np.uint8)
        return self._start(Call("barrier", 0, nothing, nothing))

    def _send(self, array: np.ndarray, to: int) -> Work:
        return self._message(array, to, sends=True)

    def _recv(self, array: np.ndarray, source: int) -> Work:
        return self._message(array, source, sends=False)

    def _start(self, call: Call) -> EngineWork:
        self._raise_if_unusable(call.kind)
        return EngineWork(self, self._make(call))

    def _message(self, array: np.ndarray, peer: int, sends: bool) -> EngineWork:
        self._raise_if_unusable("send" if sends else "recv")
        if (peer, sends) not in self._streams:
            self._streams[peer, sends] = self._stream(peer, sends)
        stream = self._streams[peer, sends]
        return EngineWork(self, None, self._make_message(stream, array, peer, sends), stream, peer)

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
        self,
        turn: Callable[[float], int],
        op: _engine.Op,
        on: Any,
        peer: int | None,
        timeout: float | None,
        follows: Callable[[Any], bool] = lambda lane: False,
    ) -> None:
        """Take turns of a wait until it ends well, or raise how it ended.

        Args:
            follows: whether all that the engine has on a lane begins only when `op` has ended.
        """
        patience = Patience(self.timeout_s if timeout is None else timeout, stretch=timeout is None)
        standstill: Standstill | None = None
        self._peers.callers.add(threading.get_ident())
        try:
            while (state := turn(min(_SLICE_S, patience.timeout_s))) == _engine.PENDING:
                standstill = standstill or Standstill(self._peers.world)
                if timeout is None and self._stands_still(standstill, op, on, peer, follows):
                    break
                missing = [peer] if peer is not None else on.missing(op)
                if gone := [r for r in missing if self._peers.world.seat(self._seats[r])[4]]:
                    raise self._fail(self._gone(gone[0], self._spell(op, on, peer)))
                shown = {r: self._signs(r) for r in missing}
                if not patience.look(shown, lambda ranks: self._stall(self._spell(op, on, peer), ranks)):
                    error = CollectiveTimeoutError(
                        self._where,
                        self._shown(self.rank),
                        f"{self._spell(op, on, peer)} on group {self.name}",
                        patience.timeout_s,
                        [self._shown(r) for r in missing],
                    )
                    raise error if timeout is not None else self._fail(error)
        except KeyboardInterrupt:
            self._break_off()
            raise
        finally:
            if standstill is not None:
                standstill.end()
        if state != _engine.DONE and standstill is not None and standstill.certain and self._failure is None:
            raise self._fail(self._circle(standstill, op, on, peer))
        if state != _engine.DONE:
            raise self._failed(state, op, on, peer)

    def _stands_still(
        self,
        standstill: Standstill,
        op: _engine.Op,
        on: Any,
        peer: int | None,
        follows: Callable[[Any], bool],
    ) -> bool:
        """Whether this wait is one of a circle of ranks that wait for each other."""
        if len(self._peers.callers) > 1:
            return False
        number = on.begun
        if peer is None:
            lane, needs = _SYNCHRONOUS if on is self._lane else _ASYNCHRONOUS, on.needs(op)
        else:
            lane, needs = _MESSAGES, [] if op.sends else [peer]
        seats = [self._seats[rank] for rank in needs]
        groups = self._peers.world.groups

        def owes(seat: int, key: int, number: int, lane: int) -> bool:
            group = groups.get(key)
            return group is not None and group._has_yet_to_begin(number, lane, seat, follows)

        call = self._call(op, peer)
        return standstill.look(self._key, self._whole, number, lane, seats, call, owes)

    def _has_yet_to_begin(self, number: int, lane: int, seat: int, follows: Callable[[Any], bool]) -> bool:
        """Whether nobody begins this operation before this process's caller leaves the wait that it is in."""
        if lane == _MESSAGES:
            on = self._streams.get((self._seats.index(seat), True))
        else:
            on = self._lane if lane == _SYNCHRONOUS else self._engine_lane
        # What the engine was given counts as begun once it has ended.
        return on is None or ((not on.pending or follows(on)) and on.begun < number)

    def _circle(
        self, standstill: Standstill, op: _engine.Op, on: Any, peer: int | None
    ) -> CollectiveMismatchError:
        """The error of ranks that wait for each other in different groups or lanes, by the world's ranks."""

        def spelled(key: int, lane: int, call: tuple[int, ...]) -> str:
            group = self._peers.world.groups.get(key)
            name = f"group {group.name}" if group is not None else f"a group without rank {world.rank}"
            if group is not None and key != self._whole and group.name == self.name:
                name = f"another group {group.name}"
            return f"{spell(*call)}{' with async_=True' * (lane == _ASYNCHRONOUS)} on {name}"

        world, members = self._peers.world, self._peers.members
        lane = _MESSAGES if peer is not None else _SYNCHRONOUS if on is self._lane else _ASYNCHRONOUS
        theirs = {
            members[seat]["rank"]: spelled(key, its_lane, call)
            for seat, (key, its_lane, call) in standstill.others.items()
            if (key, its_lane) != (self._whole, lane) or lane == _MESSAGES
        }
        return CollectiveMismatchError(
            self._where, world.rank, spelled(self._whole, lane, self._call(op, peer)), theirs,
            "Make every rank call its operations on the same groups in the same order",
        )  # fmt: skip

    @staticmethod
    def _call(op: _engine.Op, peer: int | None) -> tuple[int, int, int, int, int, int]:
        """As ranks show it to each other: of a message with the other end as its root."""
        if peer is None:
            return op.call
        _, dtype, _, _, count, _ = op.call
        return KIND["send" if op.sends else "recv"], dtype, 0, peer, count, 0

    def _failed(self, state: int, op: _engine.Op, on: Any, peer: int | None) -> CommError:
        """The error of an operation that ended with `state`."""
        if self._failure is not None:
            return self._failure
        op, state = self._first_unfinished(op, on, state)
        world, mine, place = self._peers.world, self._call(op, peer), self._place(on, peer)
        if state == _engine.MISMATCH:
            theirs = self._differing(op, on, peer)
            if theirs and op.pair(0) is not None:
                mine = self._of_pair(op, mine, *next(iter(theirs.items())))
            mismatch.show(world, place, mine, theirs)
            until = time.monotonic() + _HEARSAY_S
            while not theirs and time.monotonic() < until:  # an all_to_all in which two others differ
                time.sleep(0.001)
                theirs = mismatch.told(world, place, mine)
        else:
            theirs = mismatch.told(world, place, mine)
        if theirs or state == _engine.MISMATCH:
            calls = {self._outer.index(seat): spell(*call) for seat, call in theirs.items()}
            rank = self._shown(self.rank)
            return self._fail(
                CollectiveMismatchError(self._where, rank, spell(*mine), calls, unnamed=_UNNAMED)
            )
        lost = self._peers.lost(f"{self._spell(op, on, peer)} on group {self.name}")
        assert lost is not None, state
        return self._fail(lost)

    def _first_unfinished(self, op: _engine.Op, on: Any, state: int) -> tuple[_engine.Op, int]:
        """The operation that a lane or stream came to grief at, and how; it may be one before `op`, not yet waited for."""
        for work in self._peers.live:
            for earlier, its_on in work.unfinished():
                if its_on is on:
                    return earlier, earlier.state
        return op, state

    def _place(self, on: Any, peer: int | None) -> mismatch.Place:
        """Of the operation that a lane or stream is at."""
        if peer is not None:
            pair = frozenset([self._peers.seat, self._seats[peer]])
            return mismatch.Place(self._key, self._whole, _MESSAGES, on.begun, pair)
        lane = _SYNCHRONOUS if on is self._lane else _ASYNCHRONOUS
        return mismatch.Place(self._key, self._whole, lane, on.begun, None)

    def _differing(self, op: _engine.Op, on: Any, peer: int | None) -> dict[int, mismatch.Call]:
        """After a mismatch: the calls that differ from this rank's, by seat."""
        if peer is not None:
            dtype, count = on.refused if op.sends else op.came
            kind = KIND["recv" if op.sends else "send"]
            return {self._seats[peer]: (kind, dtype, 0, -1, count, 0)}
        calls = {self._seats[r]: call for r, call in on.calls(op).items()} | on.passed_on(op)
        mine = calls.pop(self._peers.seat)
        theirs = {}
        for seat, call in calls.items():
            pair = None if op.pair(0) is None else op.pair(self._seats.index(seat))
            if pair is None or call[:3] != mine[:3]:
                if call != mine:
                    theirs[seat] = call
            elif call[4:] != pair[::-1]:
                theirs[seat] = (*call[:3], self._shown(self.rank), call[4], call[5])
        return theirs

    def _of_pair(
        self, op: _engine.Op, mine: mismatch.Call, seat: int, theirs: mismatch.Call
    ) -> mismatch.Call:
        """This rank's all_to_all beside one that differs: by what passes between the two, if that is the difference."""
        peer = self._seats.index(seat)
        pair = op.pair(peer)
        if theirs[:3] != mine[:3] or pair is None:
            return mine
        return (*mine[:3], self._shown(peer), *pair)

    def _spell(self, op: _engine.Op, on: Any, peer: int | None) -> str:
        return spell(*self._call(op, peer))

    def _stall(self, call: str, ranks: list[int]) -> str:
        parts = []
        for r in ranks:
            _, _, kind, number, _ = self._peers.world.seat(self._seats[r])
            member = self._peers.members[self._seats[r]]
            parts.append(f"rank {member['rank']} on {member['host']} (last operation: {kind} {number})")
        who = f"[{self._where}] rank {self._peers.world.rank}"
        return f"{who} waits in {call} on group {self.name} for {', '.join(parts)}"

    def _gone(self, rank: int, call: str) -> PeerLostError:
        member = self._peers.members[self._seats[rank]]
        return PeerLostError(
            self._where, member["rank"], member["host"], f"{call} on group {self.name}", "it closed its groups",
            self._peers.world.rank,
        )  # fmt: skip

    def _fail(self, error: CommError) -> CommError:
        self._break_off(error)
        return error

    def _break_off(self, error: CommError | None = None) -> None:
        """Let the engine drop the group's operations: no thread of this process touches their arrays again."""
        self._failure = self._failure or error
        for on in (self._lane, self._engine_lane, *self._streams.values()):
            on.break_off()


class EngineWork(Work):
    """An operation of an EngineGroup. It begins when the group says whether it is waited for at once."""

    def __init__(
        self,
        group: EngineGroup,
        make: MakeOp | None,
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
        node = self.group._peers
        node.live = [work for work in node.live if not work.ended() or work.unfinished()]
        node.live.append(self)
        node.callers.add(threading.get_ident())
        self._submitted = True
        self._op.submit()

    def speak(self, call: tuple[int, ...]) -> None:
        """Before it begins: what peers compare instead (`Op.speak`)."""
        make = self._make
        assert make is not None

        def spoken(lane: Any, own: bool) -> _engine.Op:
            op = make(lane, own)
            op.speak(*call)
            return op

        self._make = spoken

    @property
    def operation(self) -> _engine.Op | None:
        """The engine's, once it has begun."""
        return self._op

    def ended(self) -> bool:
        """Whether nothing touches its arrays any more."""
        return self._complete or (self._submitted and self._op.state != _engine.PENDING)

    def unfinished(self) -> list[tuple[_engine.Op, Any]]:
        """Its operation and lane, unless it has not begun, or ended well."""
        if not self._submitted or self._complete or self._op.state == _engine.DONE:
            return []
        return [(self._op, self._on)]

    def done(self) -> bool:
        """Say whether it is complete; the engine moves it."""
        if not self._complete and self._submitted:
            state = self._op.state
            if state not in (_engine.PENDING, _engine.DONE):
                raise self.group._failed(state, self._op, self._on, self._peer)
            if state == _engine.DONE:
                self._let_go()
        return self._complete

    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds, or the group's deadline."""
        if self._complete:
            return
        if not self._submitted:
            self._run_in_caller()
        else:
            self.group._patiently(self._op.wait, self._op, self._on, self._peer, timeout)
        self._let_go()

    def _let_go(self) -> None:
        """It is complete: its arrays are the caller's alone."""
        self._complete = True
        self._op = None

    def _run_in_caller(self) -> None:
        if self._make is not None:
            self._on = self.group._lane
            self._op, self._make = self._make(self._on, False), None
        elif self._on.pending:  # messages before this one are the engine's; it keeps their order
            self.begin()
            self.group._patiently(self._op.wait, self._op, self._on, self._peer, None)
            return
        self.group._run(self._op, self._on, self._peer)
