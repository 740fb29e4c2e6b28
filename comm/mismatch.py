"""A mismatch is heard of before the end of the rank that met it.

Ranks compare their calls by what an operation brings along: a slot in shared memory, a header on a link. A rank that finds
a difference raises, and then its process ends. On a peer that end may be seen first: its header is on another connection, on
a queue pair that is gone with the process, or in a completion queue that a starved process has not looked at. The peer
would call it a loss.

So a rank that has met a difference first shows both calls in its seat (csrc/world.h, `ckc_difference`). The ranks of its
node read it there, also when its process is gone; those of other nodes hear it on the control connection, ahead of the
end of that connection, which is how they learn that it ended. A rank that has lost another one looks here before it says
so. What it finds counts when it is about the operation that it waits in:

- in the same group, the one of the same number on the same lane (and for a message between the same two ranks);
- in another part of the same group in two levels, whose parts count for themselves, one on the same lane.
"""

from __future__ import annotations

from typing import NamedTuple

from cktrain.comm import _engine

Call = tuple[int, int, int, int, int, int]
"""kind, dtype, op, root, count, extra."""


class Place(NamedTuple):
    """Where an operation stands, by the names that all ranks have for it."""

    group: int
    whole: int
    """The group as the user knows it."""
    lane: int
    number: int
    """On the lane."""
    pair: frozenset[int] | None
    """Seats of a message's two ends."""


def show(world: _engine.World, place: Place, mine: Call, theirs: dict[int, Call]) -> None:
    """Before this rank raises: tell all others what it calls, and what a rank that differs does, by seat."""
    for seat, call in list(theirs.items())[:1]:
        _engine.show_difference(world, place.group, place.whole, place.lane, place.number, mine, seat, call)


def told(world: _engine.World, place: Place, mine: Call) -> dict[int, Call]:
    """Calls that differ from `mine`, this rank's, by seat, as others have told of this operation; empty: nobody has."""
    for seat, group, whole, lane, number, call, other, others in _engine.differences(world):
        if (whole, lane) != (place.whole, place.lane) or (group == place.group and number != place.number):
            continue
        if place.pair is not None and place.pair != {seat, other}:
            continue
        calls = {seat: call, other: others}
        theirs = {s: c for s, c in calls.items() if s != world.local_rank and c != mine}
        if theirs:
            return theirs
    return {}
