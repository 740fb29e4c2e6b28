"""Learning rate as a pure function of the step: constant, linear, cosine and WSD, each after a linear warm-up.

In a run with `run.max_time` the step is its position in the schedule, which the clock may move on.
"""

from __future__ import annotations

import math

from cktrain.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, steps: int, step: float) -> float:
    """The rate of `step` (from 1, also between two) of `steps`.

    Warm-up rises by peak/warmup a step and reaches the peak at its last one. After it, linear and cosine
    fall to peak·min_lr_ratio at the last step; wsd (Hu et al. 2024) stays at the peak and falls linearly over the last
    decay_steps.
    """
    warmup = config.warmup(steps)
    if step <= warmup:
        return peak * step / warmup
    low = config.min_lr_ratio
    if config.name == "constant":
        return peak
    if config.name == "wsd":
        decay = min(config.decay_steps or max(1, steps // 10), steps - warmup)
        done = max(0.0, (step - (steps - decay)) / decay)
        return peak * (1 - (1 - low) * min(1.0, done))
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    if config.name == "linear":
        return peak * (1 - (1 - low) * done)
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


def position(step: int, steps: int, seconds: float, max_seconds: float | None) -> float:
    """Where in a schedule of `steps` the step stands after so many seconds of training: at its own number or, where the
    time that the run has goes by faster than its steps, as far on as the clock.
    """
    if max_seconds is None:
        return step
    return max(float(step), steps * min(1.0, seconds / max_seconds))
