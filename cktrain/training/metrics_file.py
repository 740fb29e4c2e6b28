"""`metrics.jsonl`: a line per logged step and per validation, for curves and dashboards.

A line is one JSON object; training lines have `loss`, validation lines `val_loss`; what an objective measures beside it
stands there by its name, of a validation with `val_` before it. It only watches: where the file cannot
be written, the run goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cktrain.best_effort import LineFile
from cktrain.checkpoint_folder import free_name
from cktrain.training.metrics import StepMetrics
from cktrain.training.observer import Observer
from cktrain.training.validation import ValidationResult

log = logging.getLogger("cktrain")


class MetricsFile(Observer):
    """Appends to `metrics.jsonl`; a resumed run first drops the lines of steps after the one it resumes from, and one that
    begins drops all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = LineFile(path, "[metrics]")

    def begun(self, done: int, steps: int) -> None:
        """Drop the lines of steps that are to be done again."""
        with self._file.effort:
            self._drop_later(done)

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """A training line."""
        self.write(record)

    def validated(self, step: int, result: ValidationResult) -> None:
        """A validation line."""
        values = {"step": step, "val_loss": result.loss, "bits_per_byte": result.bits_per_byte}
        of_parts = {"val_loss_of_parts": result.parts} if result.parts else {}
        measures = {f"val_{name}": value for name, value in result.measures.items()}
        self.write({**values, **of_parts, **measures, "val_data": result.data})

    def write(self, values: StepMetrics | dict[str, Any]) -> None:
        """One line; a non-finite number becomes null, since JSON has none."""
        record = asdict(values) if isinstance(values, StepMetrics) else values
        record |= record.pop("measures", {})
        for key in ("epoch", "mixture"):  # of a run whose length is given in steps, of one data set
            if record.get(key, 0) is None:
                del record[key]
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean))

    def ended(self) -> None:
        """Say how many lines are missing, if any are."""
        if missing := self._file.effort.failures:
            log.warning(
                "[metrics] %s: writing it failed %d times; what was to be written is missing",
                self.path,
                missing,
            )

    def _drop_later(self, resumed_step: int) -> None:
        if not self.path.is_file():  # none; or a pipe, which would be waited for
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if resumed_step and _is_of_step_up_to(line, resumed_step)]
        if kept == lines:
            return
        if resumed_step == 0 and any(line.endswith(b"\n") and not _is_record(line) for line in lines):
            kept_as = free_name(self.path.with_name(self.path.name + ".before"))
            self.path.rename(kept_as)
            log.warning(
                "[metrics] %s has lines that no run wrote: it is %s now, and a new one begins",
                self.path,
                kept_as,
            )
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _is_record(line: bytes) -> bool:
    """Whether a whole line is one that a run writes."""
    try:
        return isinstance(json.loads(line)["step"], int)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_of_step_up_to(line: bytes, step: int) -> bool:
    """Whether it is a whole line of that step or one before; not what a killed run was writing."""
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
