"""Algorithms of collectives as plain data: who sends which elements to whom, and what is reduced from what.

A `Schedule` is one rank's part. Its rounds follow each other; the transfers of a round go on side by side, then the
round's local steps run in their order. Between two ranks the k-th send of one meets the k-th receive of the other.
Nothing here touches a network: a simulator runs every schedule for 1 to 17 ranks (`tests/comm/schedules`), and
csrc/wire.h carries them out over sockets.

Places: `in` is what the caller gives, `out` what it gets (often one array in all_reduce and broadcast), `scratch` the
schedule's own; `at` and `count` are elements of them. Legend: n ranks, S elements of the whole array, begins[r] where
rank r's part begins, segment the elements that are under way per peer at a time.

Canonical schedules reduce in the order of ranks and give the same bits whatever the algorithm, the length or the
transport. `ring` and `halving_doubling` reductions add in an order of their own: the same on all ranks and in every run
with the same number of ranks, but other bits; they are used only where they are named (`comm.algorithm`).
"""

from __future__ import annotations

from dataclasses import dataclass

IN, OUT, SCRATCH = 0, 1, 2
SEND, RECV, REDUCE, COPY = 0, 1, 2, 3


@dataclass(frozen=True)
class Step:
    """A transfer with `peer`, or a local step from `sources` (place, at) to place[at : at + count]."""

    kind: int
    peer: int
    place: int
    at: int
    count: int
    sources: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Schedule:
    """One rank's rounds, and the elements of scratch that they need."""

    rounds: tuple[tuple[Step, ...], ...]
    scratch: int = 0

    def sent(self) -> int:
        """Elements that this rank sends."""
        return sum(step.count for steps in self.rounds for step in steps if step.kind == SEND)


def send(peer: int, place: int, at: int, count: int) -> Step:
    """Send place[at : at + count] to `peer`."""
    return Step(SEND, peer, place, at, count)


def recv(peer: int, place: int, at: int, count: int) -> Step:
    """Receive place[at : at + count] from `peer`."""
    return Step(RECV, peer, place, at, count)


def reduce(place: int, at: int, count: int, *sources: tuple[int, int]) -> Step:
    """place[at : at + count] = the sources, reduced in their order; it may be one of them."""
    return Step(REDUCE, -1, place, at, count, sources)


def copy(place: int, at: int, count: int, source: tuple[int, int]) -> Step:
    """place[at : at + count] = the source; they may be the same."""
    return Step(COPY, -1, place, at, count, (source,))


def schedule(rounds: list[list[Step]], scratch: int = 0) -> Schedule:
    """A schedule without what moves nothing."""
    kept = [tuple(step for step in steps if step.count > 0) for steps in rounds]
    return Schedule(tuple(steps for steps in kept if steps), scratch)
