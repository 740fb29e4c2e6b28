"""The log line of a step, and that of a validation: each rank's into its own log, rank 0's on the terminal too."""

from __future__ import annotations

import logging

from cktrain.training.metrics import StepMetrics, in_words
from cktrain.training.observer import Observer
from cktrain.training.validation import ValidationResult

log = logging.getLogger("cktrain")


class LogLine(Observer):
    """Logs what was measured."""

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """The step's line."""
        log.info(record.line(seconds_per_step, steps_left))

    def validated(self, step: int, result: ValidationResult) -> None:
        """The validation's line."""
        bits = "" if result.bits_per_byte is None else f"  bits_per_byte: {result.bits_per_byte:.4f}"
        parts = "".join(f"  {name}: {loss:.5f}" for name, loss in result.parts.items())
        more = "".join(f"  {each}" for each in in_words(result.measures))
        log.info(
            "validate step: %d  loss: %.5f%s  tokens: %s%s",
            step,
            result.loss,
            bits,
            f"{result.tokens:,}",
            parts + more,
        )
