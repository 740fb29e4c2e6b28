"""Evaluates the model on held-out data every so many steps or several times an epoch, and after the last step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cktrain.agreed import AgreedError
from cktrain.checkpoint import Progress
from cktrain.config import Config
from cktrain.training.checkpoint_saver import CheckpointSaver
from cktrain.training.observer import Observer, Step
from cktrain.training.validation import ValidationResult, Validator

log = logging.getLogger("cktrain")


class PeriodicValidation(Observer):
    """Takes part on all ranks; tells those who watch what came out."""

    watches = False

    def __init__(
        self,
        config: Config,
        validator: Validator,
        saver: CheckpointSaver,
        tell: Callable[[int, ValidationResult], None],
        progress: Callable[[], Progress],
        sequences: int,
    ) -> None:
        """`tell` hears what came out of which step; an epoch has so many `sequences`."""
        self._config = config
        self._progress = progress
        self._sequences = sequences
        self._validator = validator
        self._saver = saver
        self._tell = tell

    def begun(self, done: int, steps: int) -> None:
        """Evaluate what the run begins with, where that is asked for. Raises as `stepped`."""
        if self._config.data.validation.at_start and not done:
            self._evaluate(0)

    def stepped(self, step: Step) -> None:
        """Evaluate where it is due. Raises AgreedError, on all ranks, when a rank cannot; what was trained is saved."""
        if step.last or self._is_due(step.number):
            self._evaluate(step.number)

    def _is_due(self, number: int) -> bool:
        every, times = self._config.data.validation.every, self._config.data.validation.times_per_epoch
        if times is None:
            return bool(every) and number % every == 0
        after = self._progress().examples
        before = after - self._config.batch.resolved_global_batch_size
        return after * times // self._sequences > before * times // self._sequences

    def _evaluate(self, step: int) -> None:
        try:
            result = self._validator.run()
        except AgreedError as error:
            raise type(error)(f"{error} {self._saver.save_at_the_end()}") from None
        if result is None:
            log.info("validation after step %d is left, since the run is to stop", step)
        else:
            self._tell(step, result)
