"""Intervals of figures over rows by the bootstrap (Efron 1979): rows are drawn with replacement, the figure computed anew.

A figure is a ratio of sums over rows, sum(numerators) / sum(denominators): a loss per token, a mean (denominators 1). Its
interval of 95 % is that between the percentiles 2.5 and 97.5. Figures of two models over the same rows are drawn together,
so that the interval of their difference does not have the spread between rows.

Shapes: numerators and denominators (n,) of n rows; ratios (draws,).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 2000
_AT_ONCE = 1 << 22  # numbers drawn together

Floats = npt.NDArray[np.float64]


def resampled_ratios(
    figures: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], draws: int = DRAWS, seed: int = 0
) -> list[Floats]:
    """The ratio of each figure, all over the same `draws` drawn sets of rows."""
    arrays = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in figures]
    count = len(arrays[0][0])
    rng = np.random.default_rng(seed)
    found: list[list[Floats]] = [[] for _ in arrays]
    left = draws
    while left:
        some = min(left, max(1, _AT_ONCE // count))
        rows = rng.integers(0, count, (some, count))
        for place, (numerators, denominators) in enumerate(arrays):
            found[place].append(numerators[rows].sum(axis=1) / denominators[rows].sum(axis=1))
        left -= some
    return [np.concatenate(each) for each in found]


def interval(ratios: Floats) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5."""
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
