"""The best of a run by its validation loss: its checkpoint is kept, and a run that gets no better may end early.

    RUN/best/step-00000040/    the only one there; beside RUN/checkpoints, whose rotation does not see it

What the run began with is a loss to beat, and no checkpoint: those weights are the model that it began with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from cktrain.checkpoint import NotSavedError
from cktrain.checkpoint_folder import find_candidates, move_aside
from cktrain.checkpoint_record import read_checkpoint
from cktrain.config import CheckpointConfig
from cktrain.training.checkpoint_saver import CheckpointSaver
from cktrain.training.observer import Observer
from cktrain.training.validation import ValidationResult

log = logging.getLogger("cktrain")


class BestCheckpoint(Observer):
    """Takes part on all ranks, which know the same losses."""

    watches = False

    def __init__(
        self, config: CheckpointConfig, saver: CheckpointSaver, end: Callable[[str], None], data: str
    ) -> None:
        """`end` is told why the run is to end after the step that was just validated; `data` is the fingerprint of the
        tokens that it is validated on.
        """
        self._config = config
        self._saver = saver
        self._end = end
        self._data = data
        self._worse = 0
        self.loss = math.inf
        """The lowest so far, nats per token."""

    def begun(self, done: int, steps: int) -> None:
        """A run that goes on has to be better than the best one before; validations that were not are counted anew."""
        if done:
            self.loss = self._saver.together(lambda: comparable_loss(self._saver.best_folder, self._data))

    def validated(self, step: int, result: ValidationResult) -> None:
        """Keep the best, end where it lies too far behind. Raises NotSavedError, on all ranks, as `CheckpointSaver`."""
        if result.loss < self.loss:
            self.loss, self._worse = result.loss, 0
            if self._config.save_best and step:
                self._save(step)
            return
        self._worse += 1
        patience = self._config.early_stopping_patience
        if patience is not None and self._worse >= patience:
            times = "validation was" if self._worse == 1 else f"{self._worse} validations were"
            self._end(
                f"the last {times} not better than loss {self.loss:.5f} (checkpoint.early_stopping_patience)"
            )

    def _save(self, step: int) -> None:
        try:
            self._saver.save_best(self.loss, self._data)
        except NotSavedError as error:
            if not error.may_pass:
                raise
            log.error("%s The run goes on; the best one up to step %d is not kept in best/.", error, step)


def best_checkpoint(folder: Path) -> tuple[Path, float] | None:
    """The checkpoint in RUN/best and its validation loss; None where there is none."""
    for found in find_candidates(folder).found:
        if found.state.validation_loss is not None:
            return found.path, found.state.validation_loss
    return None


def comparable_loss(folder: Path, data: str) -> float:
    """The validation loss of the checkpoint in RUN/best; infinite where there is none.

    One that was measured on other tokens than these is moved aside, and said. Raises OSError where that fails.
    """
    found = best_checkpoint(folder)
    if found is None:
        return math.inf
    path, loss = found
    measured_on = read_checkpoint(path).state.validation_data
    if measured_on in ("", data):
        return loss
    aside = move_aside(folder, [path])
    log.warning(
        "changed on resume: validation data: %s -> %s (fingerprints): losses from here on are of other tokens than those "
        "before. %s, whose loss %.5f is of those before, is moved into %s",
        measured_on,
        data,
        path,
        loss,
        aside.name,
    )
    return math.inf
