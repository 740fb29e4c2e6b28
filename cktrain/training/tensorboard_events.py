"""TensorBoard's event files of a run, in RUN/tensorboard, by tensorboardX: `tensorboard --logdir RUN/tensorboard`.

A run that goes on begins another file there, which tells TensorBoard to forget what it has of later steps. TensorBoard
reads the files by name and tensorboardX names one by the second in which it was begun: a number after that keeps the
order, and the older file, where a run goes on within the same second.

Events are written where the run is, and not by tensorboardX's thread: that one dies of a full disk without a word, and
whoever hands it the next events waits for ever.
"""

from __future__ import annotations

import contextlib
import time
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
        self._opens = False

    def begun(self, done: int, steps: int) -> None:
        """Open a file."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        try:
            with contextlib.suppress(FileExistsError):  # a file, of which opening one in it will say so
                self._folder.mkdir(parents=True, exist_ok=True)
            self._opens = True
            self._add(Event(step=done + 1, session_log=SessionLog(status=SessionLog.START)))
        except OSError as error:
            self._opens = False
            raise RuntimeError(
                f"{self._folder}: {error.strerror or error}. Make it a folder that can be written, and go on with the run"
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
        if not self._opens:  # could not be opened, and that was said
            return
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        # As a message of its own: add_scalar puts underscores into names for what TensorBoard shows as it is.
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=scalars)))

    def _add(self, event: Any) -> None:
        """Write an event. After an OSError, which may leave half of it, the next one begins another file."""
        from tensorboardX.event_file_writer import EventsWriter

        event.wall_time = time.time()
        try:
            if self._writer is None:
                number = len(list(self._folder.glob("events.out.tfevents.*")))
                self._writer = EventsWriter(str(self._folder / "events"), f".{number:06d}")
            self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            if self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.close()
                self._writer = None
            raise
