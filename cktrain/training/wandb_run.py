"""A run at Weights & Biases, under the name of its folder; wandb's own variables hold (WANDB_MODE=offline, WANDB_API_KEY).

Offline its files lie in RUN/wandb, for `wandb sync`. A run that goes on goes on there too: its identity is the one in its
checkpoints. Nothing is asked on the terminal: without a key and not offline, a warning says that nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cktrain.training.metrics import StepMetrics
from cktrain.training.observer import Observer
from cktrain.training.tracked_values import training_values, validation_values
from cktrain.training.validation import ValidationResult


class WandbRun(Observer):
    """Watches on rank 0."""

    def __init__(self, project: str, run_dir: Path, identity: str, config: Mapping[str, Any]) -> None:
        """`identity` is the run's name for itself, `config` what is shown beside its curves."""
        self._project = project
        self._run_dir = run_dir
        self._identity = identity
        self._config = config
        self._run: Any = None

    def begun(self, done: int, steps: int) -> None:
        """Begin it, or go on with it."""
        import wandb

        # Its own capture of the terminal and its questions would stand between this program and its user.
        quiet = wandb.Settings(console="off", silent=True)
        if wandb.setup(quiet).settings.mode != "offline" and not wandb.api.api_key:
            raise PermissionError("no key of W&B is known. Run `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=self._project,
            name=self._run_dir.resolve().name,
            id=self._identity,
            dir=str(self._run_dir),
            config=dict(self._config),
            resume="allow",
            settings=quiet,
        )

    def measured(self, record: StepMetrics, seconds_per_step: float, steps_left: int) -> None:
        """A training step's values."""
        self._send(record.step, training_values(record, seconds_per_step))

    def validated(self, step: int, result: ValidationResult) -> None:
        """A validation's."""
        self._send(step, validation_values(result))

    def ended(self) -> None:
        """Hand over what is left."""
        if self._run is not None:
            self._run.finish()

    def _send(self, step: int, values: dict[str, float]) -> None:
        if self._run is not None:  # else it could not begin, and that was said
            self._run.log(values, step=step)
