"""Ends a run whose loss or gradient is not finite three steps in a row; a single one is skipped and said."""

from __future__ import annotations

import logging
import sys

from cktrain.agreed import AgreedError
from cktrain.training.checkpoint_saver import CheckpointSaver
from cktrain.training.observer import Observer, Step

log = logging.getLogger("cktrain")

MAX_SKIPPED = 3


class TrainingDiverged(AgreedError, RuntimeError):
    """Loss or gradient was not finite in three steps in a row."""


class DivergenceCheck(Observer):
    """Takes part on all ranks, which all see the same loss and norm."""

    watches = False

    def __init__(self, saver: CheckpointSaver) -> None:
        self._saver = saver
        self._skipped_in_a_row = 0

    def stepped(self, step: Step) -> None:
        """Count skipped steps. Raises TrainingDiverged, on all ranks, at the third in a row."""
        result = step.result
        if result.applied:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        log.warning("step %d skipped: %s. No weight was changed.", step.number, what)
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"[trainer] all ranks: {what} at step {step.number}, the third skipped step in a row. "
                "Lower optimizer.lr, or look at the data of these steps. "
                # The weights are those from before the skipped steps, but they may be on their way to nowhere.
                f"{self._saver.save_at_the_end(keep=sys.maxsize)} Older checkpoints are untouched: checkpoint.resume "
                "takes one."
            )
