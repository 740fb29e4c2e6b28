"""A mixture of data sets: of which part an example is, and how many-th of that part, as a pure function of its number.

A stage has a weight for each part. Its examples are dealt by cuts: the first part takes the share p₀ of all, the second the
share p₁ of the rest, and so on; of n examples a cut takes ⌊p n + ½⌋. So example n is the first part's where that number
grows from n to n + 1, and else example n − ⌊p n + ½⌋ of the rest. All of it is exact (rational numbers), nothing is drawn,
and nothing is kept: a run goes on at any example, and every rank knows each one's place.

Each cut is off by at most half an example, and k parts have k − 1 cuts: of the first n examples of a stage part j has had
w_j n ± (k − 1)/2. The parts alternate as evenly as whole examples can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Stage:
    """Examples up to number `until` (None: to the end) by these weights, one per part, 0 of a part that is not read."""

    weights: tuple[float, ...]
    until: int | None = None


class Mixture:
    """Which examples of a run are of which part."""

    def __init__(self, stages: Sequence[Stage]):
        assert stages and stages[-1].until is None, "the last stage has no end"
        self.stages = tuple(stages)
        self._cuts = [_cuts(stage.weights) for stage in stages]
        self._begins = [0] + [stage.until for stage in stages if stage.until is not None]
        self._before = [self.counts(begin) for begin in self._begins]

    @property
    def parts(self) -> int:
        """How many."""
        return len(self.stages[0].weights)

    def counts(self, examples: int) -> list[int]:
        """How many of the first `examples` of the run are of each part."""
        found = [0] * self.parts
        for cuts, begin, stage in zip(self._cuts, self._begins, self.stages, strict=True):
            here = examples if stage.until is None else min(examples, stage.until)
            if here > begin:
                found = [
                    before + more for before, more in zip(found, _counts(cuts, here - begin), strict=True)
                ]
        return found

    def places(self, first: int, count: int) -> list[tuple[int, int]]:
        """(part, how many of that part come before it) of the examples from number `first` on."""
        found = []
        for number in range(first, first + count):
            stage = max(index for index, begin in enumerate(self._begins) if begin <= number)
            part, index = _place(self._cuts[stage], number - self._begins[stage])
            found.append((part, self._before[stage][part] + index))
        return found


def _cuts(weights: Sequence[float]) -> list[Fraction]:
    """By part its share of what the parts before it leave; numbers are what they are written as: 0.1 is a tenth."""
    exact = [Fraction(repr(weight)) for weight in weights]
    rest = [sum(exact[part:], Fraction()) for part in range(len(exact))]
    return [weight / left if left else Fraction() for weight, left in zip(exact, rest, strict=True)]


def _taken(cut: Fraction, n: int) -> int:
    """⌊p n + ½⌋"""
    return (2 * cut.numerator * n + cut.denominator) // (2 * cut.denominator)


def _counts(cuts: Sequence[Fraction], n: int) -> list[int]:
    found = []
    for cut in cuts:
        found.append(_taken(cut, n))
        n -= found[-1]
    return found


def _place(cuts: Sequence[Fraction], n: int) -> tuple[int, int]:
    for part, cut in enumerate(cuts):
        taken = _taken(cut, n)
        if _taken(cut, n + 1) > taken:
            return part, taken
        n -= taken
    raise AssertionError("the last part with a weight takes what is left")
