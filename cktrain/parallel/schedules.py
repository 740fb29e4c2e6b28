"""Pipeline schedules as plain data: for each stage, the order in which it computes its forwards and backwards.

    GPipe (Huang et al. 2019)        stage 0   F0 F1 F2 F3          B0 B1 B2 B3
                                     stage 1      F0 F1 F2 F3    B0 B1 B2 B3
    1F1B (Narayanan et al. 2019)     stage 0   F0 F1    B0 F2 B1 F3 B2    B3
                                     stage 1      F0 B0 F1 B1 F2 B2 F3 B3

Both keep the same stages waiting for (p-1)/(m+p-1) of the time, with p balanced stages and m micro-batches; 1F1B holds
at most p micro-batches at a time where GPipe holds all m. On one stage 1F1B is plain accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Action:
    """One forward or backward of one micro-batch on one stage."""

    kind: Literal["forward", "backward"]
    micro_batch: int


Schedule = list[list[Action]]


def gpipe(stages: int, micro_batches: int) -> Schedule:
    """All forwards, then all backwards."""
    forwards = [Action("forward", m) for m in range(micro_batches)]
    backwards = [Action("backward", m) for m in range(micro_batches)]
    return [forwards + backwards for _ in range(stages)]


def one_forward_one_backward(stages: int, micro_batches: int) -> Schedule:
    """As many forwards first as there are stages behind, then one of each in turn."""
    schedule = []
    for stage in range(stages):
        ahead = min(stages - 1 - stage, micro_batches)
        actions = [Action("forward", m) for m in range(ahead)]
        for m in range(micro_batches - ahead):
            actions += [Action("forward", m + ahead), Action("backward", m)]
        actions += [Action("backward", m) for m in range(micro_batches - ahead, micro_batches)]
        schedule.append(actions)
    return schedule


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {"gpipe": gpipe, "1f1b": one_forward_one_backward}


def make_schedule(name: str, stages: int, micro_batches: int) -> Schedule:
    """The schedule of that name; one stage alone accumulates."""
    return SCHEDULES[name if stages > 1 else "1f1b"](stages, micro_batches)


def slots_needed(actions: Sequence[Action]) -> int:
    """The most micro-batches that are between their forward and their backward at a time."""
    held = most = 0
    for action in actions:
        held += 1 if action.kind == "forward" else -1
        most = max(most, held)
    return most


@dataclass(frozen=True)
class Simulation:
    """A schedule played through, in seconds from the first forward's start."""

    finished: float
    busy: tuple[float, ...]
    """Time that each stage computes."""

    @property
    def bubble(self) -> float:
        """The part of the time in which a stage waits, over all stages."""
        return 1 - sum(self.busy) / (len(self.busy) * self.finished)


def simulate(
    schedule: Schedule, forward: Sequence[float], backward: Sequence[float], transfer: float = 0.0
) -> Simulation:
    """Play a schedule with these seconds per stage and micro-batch, and per message between two stages.

    Raises ValueError for a schedule that can't run: an action missing or done twice, a backward before its forward, or
    stages that wait for each other.
    """
    stages = len(schedule)
    done: dict[tuple[str, int, int], float] = {}
    clock, position = [0.0] * stages, [0] * stages
    moved = True
    while moved:
        moved = False
        for stage, actions in enumerate(schedule):
            while position[stage] < len(actions):
                action = actions[position[stage]]
                ready = _ready(action, stage, stages, done, transfer)
                if ready is None:
                    break
                key = (action.kind, action.micro_batch, stage)
                if key in done:
                    raise ValueError(f"[pipeline] stage {stage}: {action} stands twice in the schedule.")
                seconds = (forward if action.kind == "forward" else backward)[stage]
                clock[stage] = done[key] = max(clock[stage], ready) + seconds
                position[stage] += 1
                moved = True
    for stage, actions in enumerate(schedule):
        if position[stage] < len(actions):
            raise ValueError(f"[pipeline] stage {stage} waits for ever at {actions[position[stage]]}.")
    micro_batches = {m for _, m, _ in done}
    if len(done) != 2 * stages * len(micro_batches):
        raise ValueError("[pipeline] the schedule lacks a forward or a backward.")
    count = len(micro_batches)
    busy = tuple(count * (f + b) for f, b in zip(forward, backward, strict=True))
    return Simulation(max(clock), busy)


def _ready(
    action: Action, stage: int, stages: int, done: dict[tuple[str, int, int], float], transfer: float
) -> float | None:
    """When what an action needs is there; None while nothing has sent it."""
    m = action.micro_batch
    if action.kind == "forward":
        if stage == 0:
            return 0.0
        sent = done.get(("forward", m, stage - 1))
        return None if sent is None else sent + transfer
    own = done.get(("forward", m, stage))
    if own is None or stage == stages - 1:
        return own
    sent = done.get(("backward", m, stage + 1))
    return None if sent is None else max(own, sent + transfer)
