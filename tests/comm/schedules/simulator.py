"""Runs the schedules of all ranks together, symbolically, in a random order of events.

An element is (index, ranks): which element of the array it is, and whose contributions it holds in the order in which
they were reduced. A transfer reads elements when they leave and writes them when they come, a few at a time, through
channels that hold a few; so whatever is overwritten too early, waits for itself or comes out of order is found.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

from cktrain.comm.schedules import COPY, IN, OUT, RECV, SCRATCH, SEND, Schedule

CAPACITY = 3


class Rank:
    """One rank: its arrays, and where it is in its schedule."""

    def __init__(self, schedule: Schedule, given: list[Any], taken: list[Any]):
        self.schedule = schedule
        self.places = {IN: given, OUT: taken, SCRATCH: [None] * schedule.scratch}
        self.round = 0
        self.moved = [0] * len(schedule.rounds[0]) if schedule.rounds else []

    def transfers(self) -> list[int]:
        """Those that may go on: in a round, the first unfinished one of each peer and direction."""
        if self.round == len(self.schedule.rounds):
            return []
        found, busy = [], set()
        for i, step in enumerate(self.schedule.rounds[self.round]):
            if (
                step.kind in (SEND, RECV)
                and self.moved[i] < step.count
                and (step.kind, step.peer) not in busy
            ):
                busy.add((step.kind, step.peer))
                found.append(i)
        return found

    def finish_round(self) -> None:
        """Do the local steps of a round whose transfers are complete, and go on."""
        for step in self.schedule.rounds[self.round]:
            if step.kind in (SEND, RECV):
                continue
            assert step.count, "a step that moves nothing"
            sources = [self.places[place][at : at + step.count] for place, at in step.sources]
            if step.kind == COPY:
                result = list(sources[0])
            else:
                result = []
                for elements in zip(*sources, strict=True):
                    assert None not in elements, "reduced before it came"
                    indices = {index for index, _ in elements}
                    assert len(indices) == 1, f"elements {indices} of the array meet in one reduction"
                    result.append((indices.pop(), sum((ranks for _, ranks in elements), ())))
            assert len(result) == step.count
            self.places[step.place][step.at : step.at + step.count] = result
        self.round += 1
        rounds = self.schedule.rounds
        self.moved = [0] * len(rounds[self.round]) if self.round < len(rounds) else []


def simulate(
    make: Callable[[int], Schedule], given: list[list[Any]], taken: list[list[Any]], seed: int
) -> list[list[Any]]:
    """Run all ranks to the end; returns what they hold in `out`. given[r] may be taken[r]: one array."""
    chance = random.Random(seed)
    ranks = [Rank(make(r), given[r], taken[r]) for r in range(len(given))]
    channels: dict[tuple[int, int], deque[Any]] = {}
    while True:
        for rank in ranks:
            while rank.round < len(rank.schedule.rounds) and not rank.transfers():
                rank.finish_round()
        if all(rank.round == len(rank.schedule.rounds) for rank in ranks):
            break
        possible = []
        for r, rank in enumerate(ranks):
            for i in rank.transfers():
                step = rank.schedule.rounds[rank.round][i]
                pair = (r, step.peer) if step.kind == SEND else (step.peer, r)
                channel = channels.setdefault(pair, deque())
                if (len(channel) < CAPACITY) if step.kind == SEND else channel:
                    possible.append((rank, i, step, channel))
        assert possible, f"deadlock: rounds {[rank.round for rank in ranks]}"
        rank, i, step, channel = chance.choice(possible)
        for _ in range(chance.randint(1, CAPACITY)):
            at = step.at + rank.moved[i]
            if step.kind == SEND:
                if len(channel) == CAPACITY:
                    break
                channel.append(rank.places[step.place][at])
            else:
                if not channel:
                    break
                rank.places[step.place][at] = channel.popleft()
            rank.moved[i] += 1
            if rank.moved[i] == step.count:
                break
    assert not any(channels.values()), "something was sent that nobody receives"
    return [rank.places[OUT] for rank in ranks]
