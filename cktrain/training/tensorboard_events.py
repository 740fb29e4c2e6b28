"""TensorBoard's event files of a run, in RUN/tensorboard, by tensorboardX: `tensorboard --logdir RUN/tensorboard`.

A run that goes on begins another file there, which tells TensorBoard to forget what it has of later steps. TensorBoard
reads the files by name and tensorboardX names one by the second in which it was begun: a number after that keeps the
order, and the older file, where a run goes on within the same second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cktrain.training.metrics import StepMetrics
from cktrain.training.observer import Observer
from cktrain.training.tracked_values import training_values, validation_values
from cktrain.training.validation import ValidationResult

FOLDER = "tensorboard"


class TensorBoardEvents(Observer):
    """Watches on rank 0."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._writer: Any = None

    def begun(self, done: int, steps: int) -> None:
        """Open a file."""
        from tensorboardX import SummaryWriter

        number, folder = len(list(self._folder.glob("events.out.tfevents.*"))), str(self._folder)
        try:
            self._writer = SummaryWriter(folder, purge_step=done + 1, filename_suffix=f".{number:06d}")
        except OSError as error:
            raise RuntimeError(
                f"{folder}: {error.strerror or error}. Make it a folder that can be written, and go on with the run"
            ) from None

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """A training step's values."""
        self._write(record.step, training_values(record, seconds_per_step))

    def validated(self, step: int, result: ValidationResult) -> None:
        """A validation's."""
        self._write(step, validation_values(result))

    def ended(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._writer is None:  # could not be opened, and that was said
            return
        from tensorboardX.proto.summary_pb2 import Summary

        # As a message of its own: add_scalar puts underscores into names for what TensorBoard shows as it is.
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.file_writer.add_summary(Summary(value=scalars), step)
        self._writer.flush()
