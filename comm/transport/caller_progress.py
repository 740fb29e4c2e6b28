"""Operations over links moved by the caller, where no thread may: pyverbs holds the GIL in every call.

The links (csrc/rdma.h) put what they want posted into postboxes; here it is handed to pyverbs, and what its completion
queues have is brought back. A completion is a Python object, so what is short comes without: the links look at their
memory for it, many times for each look at the queues. Everything in flight gets on whenever the caller waits, starts
another operation (a gradient bucket that is complete) or asks whether one is done. One thread uses it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from cktrain.comm import _engine
from cktrain.comm.transport.verbs import SPIN_S, WC_RECEIVE_IMM, MemoryRegion, QueuePair, VerbsError

_NAP_S = 100e-6
_LOOKS = 64
_BROKEN = -1


class CallerProgress:
    """The driver of all links of a process (`_engine.Wire`)."""

    def __init__(self) -> None:
        self._room = _engine.Postroom()
        self._pairs: list[tuple[Any, MemoryRegion]] = []
        self._numbers: dict[int, int] = {}
        self._queues: list[Any] = []
        self._lanes: dict[Any, deque[Any]] = {}
        self._idle_since = 0.0

    # What it drives.

    def port(self, pair: QueuePair, region: MemoryRegion) -> Any:
        """A capsule for a link over this queue pair, whose rings lie in `region`."""
        number, capsule = self._room.add()
        self._pairs.append((pair, region))
        assert number == len(self._pairs) - 1
        self._numbers[pair.number] = number
        return capsule

    def add(self, queue: Any) -> None:
        """A completion queue of such pairs."""
        self._queues.append(queue)

    def remove(self, queue: Any, pairs: Sequence[QueuePair]) -> None:
        """They are about to be closed."""
        self._queues.remove(queue)
        for pair in pairs:
            del self._numbers[pair.number]

    # What _engine asks for.

    def run(self, op: Any, seconds: float) -> int:
        """Move an operation to its end, at most so long; returns its state. All others get on as well."""
        if op.queued:
            return self._until_done(op, seconds)
        end = 0.0
        state: int = self._look(op)
        while not state:
            if self._room.waiting:
                self._post()
            elif not self._move():
                now = self._rest()
                end = end or now + seconds
                if now > end:
                    return state
            state = self._look(op)
        if self._room.waiting:
            self._post()
        return state

    def _look(self, op: Any) -> int:
        return self._room.look(op, 1 if self._lanes else _LOOKS)

    def _until_done(self, op: Any, seconds: float) -> int:
        end = 0.0
        while op.queued:
            if not self._move():
                now = self._rest()
                end = end or now + seconds
                if now > end:
                    break
        state: int = op.state
        return state

    def _rest(self) -> float:
        """Nothing came: leave the processor to others, after SPIN_S of that for longer; returns the time."""
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since < SPIN_S:
            os.sched_yield()
        else:
            time.sleep(_NAP_S)
        return now

    def submit(self, op: Any) -> None:
        """Move an operation whenever there is an opportunity, after those before it on the same wire."""
        self._lanes.setdefault(op.wire, deque()).append(op)
        self.progress()

    def progress(self) -> None:
        """Get everything on that can get on now."""
        while self._move():
            pass

    # How.

    def _move(self) -> bool:
        """One round; whether anything came, or was posted."""
        moved = False
        if self._lanes:
            for wire in list(self._lanes):
                ops = self._lanes[wire]
                while ops and ops[0].step():
                    ops.popleft()
                    moved = True
                if not ops:
                    del self._lanes[wire]
        if self._room.waiting:
            self._post()
            moved = True
        moved = self._poll() or moved
        if moved:
            self._idle_since = 0.0
        return moved

    def _post(self) -> None:
        self._idle_since = 0.0
        for number, receives, writes in self._room.take():
            pair, region = self._pairs[number]
            try:
                if receives:
                    pair.post_receive(region, 0, 0, 0, receives)
                for write in writes:
                    pair.post_row(*write)
            except (VerbsError, ValueError):  # in error, or closed: the watch thread finds out why
                self._room.ended(number, 0, _BROKEN)

    def _poll(self) -> bool:
        found = False
        for queue in self._queues:
            for wr_id, status, opcode, _, imm, qp_num in queue.poll(16):
                found = True
                number = self._numbers.get(qp_num)
                if number is None:
                    continue
                if status == 0 and opcode == WC_RECEIVE_IMM:
                    self._room.arrived(number, imm)
                else:
                    self._room.ended(number, wr_id, status)
        return found
