"""Operations made of phases on several groups: in shared memory, on the network, in shared memory again.

Asynchronous phases are handed to the engine together, each to begin when the one before it is done (`ChainWork`). Where
the network's operations are moved by the caller (MPI), so are the phases (`PolledWork`). A phase's group has
its own queue, in which the phases of all operations stand in the order of the calls; so operations overtake each other on
no group, and the next operation uses the node's memory while this one is on the network.
"""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cktrain.comm import _engine
from cktrain.comm.call import spell
from cktrain.comm.engine_group import EngineGroup, EngineWork, MakeOp
from cktrain.comm.errors import CollectiveMismatchError, CollectiveTimeoutError, CommError
from cktrain.comm.group import Group
from cktrain.comm.work import Work

# Who waits yields its core for the first while, then sleeps between two looks.
_YIELD_S = 500e-6
_SLEEP_S = 50e-6

if TYPE_CHECKING:
    from cktrain.comm.two_level_group import TwoLevelGroup


@dataclass(frozen=True)
class Phase:
    """A part of an operation."""

    on: Group
    start: Callable[[], Work]
    """Make it a Work of its own."""
    make: MakeOp | None = None
    """Make it an operation of the engine, where `on` has one."""
    call: tuple[int, ...] | None = None
    """What its peers compare and messages show, instead of the phase: kind, dtype, op, root, count, extra."""

    def operation(self, lane: Any, own: bool) -> _engine.Op:
        """For this lane; `own` where the engine keeps it."""
        assert self.make is not None
        op = self.make(lane, own)
        if self.call is not None:
            op.speak(*self.call)
        return op


class FlyingWork(Work):
    """An operation in flight on a group, whose phases are made when it begins."""

    def __init__(
        self,
        group: TwoLevelGroup,
        make: Callable[[np.ndarray], list[Phase]],
        call: tuple[int, ...],
        memory: tuple[int, np.dtype],
    ):
        """`make` gives the phases, for a piece of memory of so many elements of a dtype; `call` is the user's."""
        self.group, self._make, self._call, self._memory = group, make, call, memory
        self._before: FlyingWork | None = None

    def _phases_of(self, work: FlyingWork | None) -> list[Phase]:
        piece, self._before = self.group.lend(*self._memory, work)
        return self._make(piece)

    @abstractmethod
    def ended(self) -> bool:
        """Whether nothing touches its arrays any more."""


class ChainWork(FlyingWork):
    """Phases that the engine carries out, or the caller who waits at once."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self._ops: list[tuple[_engine.Op, Any, EngineGroup]] = []
        self._follows: list[Any] = []  # the engine looks at these until this one has begun
        self._complete = False

    def begin(self) -> None:
        """Hand all phases to the engine."""
        phases = self._phases_of(self)
        self._follows = self._before.operations if isinstance(self._before, ChainWork) else []
        self._before = None
        before = self._follows[-1][0] if self._follows else None
        for phase in phases:
            on = phase.on
            assert isinstance(on, EngineGroup)
            op = phase.operation(on._engine_lane, own=True)
            if before is not None:
                op.follow(before)
            self._ops.append((op, on._engine_lane, on))
            before = op
        self.group.peers.callers.add(threading.get_ident())
        everyone = [self.group.peers, *(group._peers for _, _, group in self._ops)]
        for peers in {id(peers): peers for peers in everyone}.values():
            peers.live = [work for work in peers.live if not work.ended() or work.unfinished()]
            peers.live.append(self)
        for op, _, _ in self._ops:
            op.submit()

    @property
    def operations(self) -> list[tuple[_engine.Op, Any, EngineGroup]]:
        """Of the engine, with their lanes and groups, while it is under way."""
        return self._ops

    def ended(self) -> bool:
        """Whether nothing touches its arrays any more."""
        return self._complete or (
            bool(self._ops) and all(op.state != _engine.PENDING for op, _, _ in self._ops)
        )

    def unfinished(self) -> list[tuple[_engine.Op, Any]]:
        """Operations and lanes of its phases, but for those that ended well."""
        return [(op, on) for op, on, _ in self._ops if op.state != _engine.DONE]

    def done(self) -> bool:
        """Say whether it is complete; the engine moves it."""
        if self._complete or not self._ops:
            return self._complete
        for op, on, group in self._ops:
            if op.state == _engine.PENDING:
                return False
            if op.state != _engine.DONE:
                error = group._failed(op.state, op, on, None)
                self._let_all_end()
                self.group.broken(error)
                raise error
        self._let_go()
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds, or the group's deadline."""
        if self._complete:
            return
        until = None if timeout is None else time.monotonic() + timeout
        with _Failing(self.group, timeout):
            if self._ops:
                for number, (op, on, group) in enumerate(self._ops):
                    left = None if until is None else max(0.0, until - time.monotonic())
                    try:
                        group._patiently(op.wait, op, on, None, left, partial(self._all_follow, number))
                    except CollectiveMismatchError:
                        self._let_all_end()
                        raise
            else:
                self._run_in_caller()
        self._let_go()

    def _all_follow(self, number: int, lane: Any) -> bool:
        """Whether all that the engine has on a lane begins only when that phase has ended."""
        if not any(on is lane for _, on, _ in self._ops[number + 1 :]):
            return False
        works = self.group.peers.live
        later = [work for work in works[works.index(self) :] if isinstance(work, ChainWork)]
        mine = sum(on is lane and op.state == _engine.PENDING for work in later for op, on, _ in work._ops)
        return bool(lane.pending == mine)

    def _let_go(self) -> None:
        """It is complete: its arrays are the caller's alone."""
        self._complete, self._ops, self._follows = True, [], []

    def _let_all_end(self) -> None:
        """The engine still tells the peers of later phases; then it lets go of them."""
        until = time.monotonic() + 0.2
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.001)

    def _run_in_caller(self) -> None:
        phases = self._phases_of(None)
        for number, phase in enumerate(phases):
            on = phase.on
            assert isinstance(on, EngineGroup)
            op = phase.operation(on._lane, own=False)
            try:
                on._run(op, on._lane)
            except CollectiveMismatchError:
                _tell(phases[number + 1 :], op)
                raise


class PolledWork(FlyingWork):
    """Phases that the caller moves on, when it asks or waits."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self._phases: list[Phase] = []
        self._begun = False
        self._current: Work | None = None
        self._next = 0

    def begin(self) -> None:
        """Take a place behind the operations in flight."""
        self._phases, self._begun = self._phases_of(self), True
        self.group.flying.append(self)
        self.group.poll()

    def advance(self, may_start: Callable[[Group], bool]) -> None:
        """Go on as far as possible without waiting; `may_start` says on which groups."""
        if self._before is not None and not self._before.ended():
            return
        self._before = None
        while self._current is None or self._current_done():
            self._current = None
            if self._next == len(self._phases) or not may_start(self._phases[self._next].on):
                return
            phase = self._phases[self._next]
            self._current = phase.start()
            if phase.call is not None and isinstance(self._current, EngineWork):
                self._current.speak(phase.call)
            self._current.begin()
            self._next += 1

    def _current_done(self) -> bool:
        assert self._current is not None
        try:
            return self._current.done()
        except CollectiveMismatchError:
            if isinstance(self._current, EngineWork) and (met := self._current.operation) is not None:
                _tell(self._phases[self._next :], met)
            raise

    def _spelled(self) -> str:
        return spell(*self._call)

    def will_use(self, on: Group) -> bool:
        """Whether a phase on this group has not been started."""
        return any(phase.on is on for phase in self._phases[self._next :])

    def ended(self) -> bool:
        """Whether it is complete."""
        return self._begun and self._current is None and self._next == len(self._phases)

    def done(self) -> bool:
        """Move all operations on and say whether this one is complete."""
        if not self.ended():
            with _Failing(self.group, None):
                self.group.poll()
        return self.ended()

    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds, or the group's deadline."""
        if not self._begun:
            self.begin()
        limit = self.group.timeout_s if timeout is None else timeout
        began = time.monotonic()
        while not self.done():
            waited = time.monotonic() - began
            if waited > limit:
                error = CollectiveTimeoutError(
                    "comm.two_level", self.group.rank, f"{self._spelled()} on group {self.group.name}", limit
                )
                if timeout is None:
                    self.group.broken(error)
                raise error
            if waited < _YIELD_S:
                os.sched_yield()
            else:
                time.sleep(_SLEEP_S)


def _tell(later: list[Phase], met: _engine.Op) -> None:
    """Tell the peers of the next phase on the network of the mismatch that `met` ended with in the node."""
    for phase in later:
        if isinstance(phase.on, EngineGroup):
            told = phase.operation(phase.on._lane, own=False)
            if isinstance(told, _engine.WireOp):
                told.tell_of(met)
                return


class _Failing:
    """Within it, what goes wrong breaks the whole group; a caller's own timeout does not."""

    def __init__(self, group: TwoLevelGroup, timeout: float | None):
        self._group, self._timeout = group, timeout

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or (self._timeout is not None and isinstance(error, CollectiveTimeoutError)):
            return
        self._group.broken(error if isinstance(error, CommError) else None)
