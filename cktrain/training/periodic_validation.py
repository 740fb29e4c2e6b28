"""Evaluates the model on held-out data every so many steps, and after the last one."""

from __future__ import annotations

from collections.abc import Callable

from cktrain.agreed import AgreedError
from cktrain.config import Config
from cktrain.training.checkpoint_saver import CheckpointSaver
from cktrain.training.observer import Observer, Step
from cktrain.training.validation import ValidationResult, Validator


class PeriodicValidation(Observer):
    """Takes part on all ranks; tells those who watch what came out."""

    watches = False

    def __init__(
        self,
        config: Config,
        validator: Validator,
        saver: CheckpointSaver,
        tell: Callable[[int, ValidationResult], None],
    ) -> None:
        self._config = config
        self._validator = validator
        self._saver = saver
        self._tell = tell

    def stepped(self, step: Step) -> None:
        """Evaluate where it is due. Raises AgreedError, on all ranks, when a rank cannot; what was trained is saved."""
        every = self._config.data.validation.every
        if not every or (step.number % every and not step.last):
            return
        try:
            result = self._validator.run()
        except AgreedError as error:
            raise type(error)(f"{error} {self._saver.save_at_the_end()}") from None
        self._tell(step.number, result)
