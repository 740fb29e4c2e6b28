"""The pipeline's bubble: the part of the time in which stages wait, measured beside what the schedule promises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cktrain.parallel.pipeline import Stage
from cktrain.parallel.schedules import Schedule, simulate


@dataclass(frozen=True)
class Bubble:
    """Means per step since the stages' clocks were reset; seconds from the first stage's start to its end."""

    measured: float
    simulated: float
    """The part of the time that the schedule itself leaves unused, with the stages' measured times and no transfer."""
    step_seconds: float
    simulated_seconds: float


def measure_bubble(stage: Stage, schedule: Schedule) -> Bubble | None:
    """Collective over the pipeline group. None when no micro-batch was computed."""
    stages = stage.group.size
    table = np.zeros((stages, 4), np.float64)
    clock = stage.clock
    table[stage.group.rank] = clock.forward, clock.backward, clock.total, clock.micro_batches
    stage.group.all_reduce(table, "sum")
    forward, backward, total, count = table.T
    if not count.all():
        return None
    steps = count[0] / (len(schedule[0]) / 2)
    played = simulate(schedule, (forward / count).tolist(), (backward / count).tolist())
    busy = float((forward + backward).sum())
    return Bubble(1 - busy / (stages * total[0]), played.bubble, total[0] / steps, played.finished)
