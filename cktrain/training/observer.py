"""Who observes a run, and the moments at which the trainer calls: log line, bar, metrics file, checkpoints, validation.

    begun  ->  validated?  ->  ( measured  ->  stepped  ->  validated )*  ->  ended

There are two kinds. One that `watches` is told; it changes nothing, may be on some ranks only, and must not talk to other
ranks. It is called under the best-effort rule: its first exception is a warning and the run goes on. One that takes part
(`watches = False`) is on all ranks in the same order and may do collective work; what it raises on all ranks ends the run,
and what one rank alone meets in it becomes trouble, which all ranks hear of at the next sums.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cktrain.agreed import AgreedError, Trouble
from cktrain.best_effort import BestEffort
from cktrain.comm.errors import CommError
from cktrain.training.metrics import StepMetrics
from cktrain.training.validation import ValidationResult

log = logging.getLogger("cktrain")


@dataclass(frozen=True)
class StepResult:
    """One step: mean loss before the update, global gradient norm before clipping, and whether it was applied."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    applied: bool
    stop: bool
    comm_seconds: float
    seconds: float = 0.0
    """Of training up to this step, by rank 0's clock, as all ranks know it."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Means of what the objective measures beside the loss."""


@dataclass(frozen=True)
class Step:
    """A step that was just done."""

    number: int
    """From 1."""
    result: StepResult
    last: bool
    """Whether it was the run's last one as configured."""
    tokens_per_second: float
    """Since the last log line."""

    @property
    def ends(self) -> bool:
        """Whether no step follows: the run is done, or was asked to stop."""
        return self.last or self.result.stop


class Observer:
    """Does nothing at any moment; a subclass overrides those that it is interested in."""

    watches = True
    """It only watches: it may fail, and be on one rank alone."""

    def begun(self, done: int, steps: int) -> None:
        """Training begins after `done` of `steps` steps."""

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """A step of which a log line is due was measured."""

    def stepped(self, step: Step) -> None:
        """A step was done, and its update applied or skipped."""

    def validated(self, step: int, result: ValidationResult) -> None:
        """The model was evaluated after that many steps."""

    def ended(self) -> None:
        """The run is over, in whatever way."""


class Observers:
    """All observers of a run, in the order in which they are told."""

    def __init__(self, observers: Sequence[Observer], alone: bool) -> None:
        """`alone`: there is one rank, so what it meets is raised at once."""
        self._observers = [
            (each, BestEffort(f"[trainer] {type(each).__name__} cannot follow the run", "It goes on."))
            for each in observers
        ]
        self._alone = alone

    def begun(self, done: int, steps: int) -> Trouble | None:
        """Tell all. Returns and raises as `stepped`."""
        return self._tell(lambda each: each.begun(done, steps))

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """Tell all."""
        self._tell(lambda each: each.measured(record, seconds_per_step, steps_left))

    def stepped(self, step: Step) -> Trouble | None:
        """Tell all; returns what this rank alone has met in one that takes part.

        Raises AgreedError for what all ranks met, CommError, and in a run of one rank whatever one that takes part raises.
        """
        return self._tell(lambda each: each.stepped(step))

    def validated(self, step: int, result: ValidationResult) -> Trouble | None:
        """Tell all. Returns and raises as `stepped`."""
        return self._tell(lambda each: each.validated(step, result))

    def ended(self) -> None:
        """Tell all."""
        self._tell(lambda each: each.ended())

    def _tell(self, moment: Callable[[Observer], None]) -> Trouble | None:
        trouble = None
        for observer, effort in self._observers:
            if observer.watches:
                with effort:
                    moment(observer)
                continue
            try:
                moment(observer)
            except (AgreedError, CommError):
                raise
            except Exception as error:
                if self._alone:
                    raise
                log.error("in %s", type(observer).__name__, exc_info=error)
                trouble = trouble or Trouble(f"{type(error).__name__}: {error}", is_input=False)
        return trouble
