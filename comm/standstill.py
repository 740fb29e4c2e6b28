"""Ranks that wait for each other in a circle, in operations on different groups, find it out before the deadline.

Within a group every operation compares what its ranks call. Ranks that call on *different* groups have nothing to
compare: one waits in one group, the others in another one, and none of them can come.

A rank whose caller has waited for AFTER_S shows what it waits in: the group, the lane, the number of the operation, and
whom it *needs* something from (csrc/world.h, `ckc_waiting`; heartbeats carry it to other nodes). Such a rank *owes*
the operation if it has not begun it, its engine has nothing of that lane, and its caller waits elsewhere: nobody will
begin it before that wait ends. Then it *holds* the other rank and all whom that one holds. A rank that holds itself can
never come to an end, nor can those whom it holds; they say so, and after LAST_WORDS_S, when all have read it, they raise.

Why nobody raises without need, though what is read may be old (Chandy, Misra and Haas 1983, of processes that need all
that they wait for): while the reader owes a rank something, that rank can be in no other wait than the one which it showed.
Likewise, by induction, all whom it holds; so a rank that finds itself held has been in its wait all along the circle.
Whom a rank holds is forgotten with the wait.

What takes no part, and ends at the deadline: a wait with a timeout of its own, which the caller may leave; a send, whose
bytes may find room without its receiver; a process in which several threads have called; operations that MPI moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cktrain.comm import _engine

AFTER_S = 0.5
LAST_WORDS_S = 1.0

Call = tuple[int, int, int, int, int, int]
"""kind, dtype, op, root, count, extra."""


class Standstill:
    """One wait of this process's caller, which nothing but its end ends."""

    def __init__(self, world: _engine.World):
        self._world, self._me = world, 1 << world.local_rank
        self._began = time.monotonic()
        self._held = 0
        self._shown = False
        self._certain_since: float | None = None
        self.others: dict[int, tuple[int, int, Call]] = {}
        """By seat: group, lane and call of the ranks that can come to no end either."""

    @property
    def certain(self) -> bool:
        """Whether the wait can have no end."""
        return self._certain_since is not None

    def look(
        self,
        group: int,
        whole: int,
        number: int,
        lane: int,
        needs: Sequence[int],
        call: Call,
        owes: Callable[[int, int, int, int], bool],
    ) -> bool:
        """Called a few times a second; True when the wait can have no end and all concerned know it.

        Args:
            group, number, lane: the operation, or one before it on its lane that is not complete.
            whole: the group as the user knows it.
            needs: seats of those from whom something must come.
            call: for the others' messages.
            owes: (seat, group, number, lane) -> whether this process has yet to begin the operation that the rank in
                that seat waits in.
        """
        now = time.monotonic()
        if now - self._began < AFTER_S:
            return False
        certain = self.certain
        for seat, theirs, shown, its_number, its_lane, needed, held, is_certain, its_call in _engine.waits(
            self._world
        ):
            if needed & self._me and owes(seat, theirs, its_number, its_lane):
                self._held |= 1 << seat | held
            certain |= is_certain and bool(held & self._me)
            if is_certain or self._held >> seat & 1:
                self.others[seat] = (shown, its_lane, its_call)
        certain |= bool(self._held & self._me)
        mask = sum(1 << seat for seat in needs)
        _engine.show_wait(self._world, group, whole, number, lane, mask, self._held, certain, call)
        self._shown = True
        if certain and self._certain_since is None:
            self._certain_since = now
            _engine.tell(self._world)
        return self._certain_since is not None and now - self._certain_since > LAST_WORDS_S

    def end(self) -> None:
        """The wait is over."""
        if self._shown:
            _engine.hide_wait(self._world)
