"""Writes checkpoints: every so many steps, at the end of a run, and at whatever ends it between two steps.

A periodic save that fails for want of space, of permission or of a server does not end the run: what was trained since the
last good checkpoint is still in memory, and nowhere else. It is said loudly once, tried again at each further save, and the
run ends with an error only if its last save fails too. A folder that another run has taken over and weights that are not
finite end it at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cktrain.checkpoint import CheckpointError, NotSavedError, Progress, save_checkpoint
from cktrain.checkpoint_folder import BEST_FOLDER, step_name
from cktrain.config import Config
from cktrain.config_types import duration_seconds
from cktrain.consistency_check import together
from cktrain.hf.peft_folder import PeftAdapter
from cktrain.optim.optimizer import Optimizer
from cktrain.parallel.model_shard import ModelShard
from cktrain.side_files import SideFiles
from cktrain.training.observer import Observer, Step

log = logging.getLogger("cktrain")


class CheckpointSaver(Observer):
    """Takes part on all ranks: each writes what it holds."""

    watches = False

    def __init__(
        self,
        config: Config,
        shard: ModelShard,
        optimizer: Optimizer,
        progress: Callable[[], Progress],
        side: SideFiles | None = None,
        adapter: PeftAdapter | None = None,
    ) -> None:
        """`side` is what stands beside the weights, on rank 0; `adapter` what the run trains beside a base.

        The run has just been resumed, or begins.
        """
        self._config = config
        self._shard = shard
        self._optimizer = optimizer
        self._progress = progress
        self._side = side
        self._adapter = adapter
        self._failures = 0
        self._due_from = progress().seconds
        """When a save was last due, in seconds of training."""
        self.saved_step = progress().step
        """The last step that is on disk; that which the run began with, or 0."""

    @property
    def folder(self) -> Path:
        """Where this run's checkpoints stand."""
        return Path(self._config.run.dir) / "checkpoints"

    @property
    def best_folder(self) -> Path:
        """Where the best one stands (`best_checkpoint.py`)."""
        return Path(self._config.run.dir) / BEST_FOLDER

    def path(self, step: int) -> Path:
        """The checkpoint of that step."""
        return self.folder / step_name(step)

    def stepped(self, step: Step) -> None:
        """Save where it is due. Raises NotSavedError, on all ranks, where the run cannot go on without."""
        if step.ends:
            try:
                self.save()
            except NotSavedError as error:
                raise NotSavedError(f"{error} {self._what_is_lost()}") from None
        elif self._is_due(step):
            try:
                self.save()
            except NotSavedError as error:
                if not error.may_pass:
                    raise NotSavedError(f"{error} {self._what_is_lost()}") from None
                self._say_failed(step.number, error)
            self._due_from = step.result.seconds

    def _is_due(self, step: Step) -> bool:
        """By the number of the step, or by the clock that all ranks know."""
        every = self._config.checkpoint.every
        if isinstance(every, str):
            return step.result.seconds - self._due_from >= duration_seconds(every)
        return bool(every) and step.number % every == 0

    def save(self, keep: int | None = None) -> Path:
        """Write a checkpoint and keep so many (None: as configured). Collective; all ranks learn whether it worked."""
        progress = self._progress()
        path = self.path(progress.step)
        self._write(self.folder, progress, self._config.checkpoint.keep if keep is None else keep)
        self.saved_step = progress.step
        log.info("saved %s", path)
        if self._failures:
            log.info("checkpoints can be written again; %d before this one failed", self._failures)
        self._failures = 0
        return path

    def save_best(self, validation_loss: float, validation_data: str) -> None:
        """Write a checkpoint into RUN/best, in place of the one there. Collective, as `save`."""
        measured = replace(self._progress(), validation_loss=validation_loss, validation_data=validation_data)
        self._write(self.best_folder, measured, 1)
        log.info("best so far: saved %s", self.best_folder / step_name(self._progress().step))

    def together(self, look: Callable[[], float]) -> float:
        """What rank 0 finds in the run's folder, told to all ranks. Collective."""
        group = self._shard.ranks.world
        found = together(group, lambda: repr(look()) if group.rank == 0 else "")
        return float(group.broadcast_bytes(found.encode()).decode())

    def _write(self, folder: Path, progress: Progress, keep: int) -> None:
        save_checkpoint(
            folder,
            progress,
            self._config,
            self._shard.params,
            self._optimizer,
            self._shard.owned,
            self._shard.ranks.world,
            keep,
            self._side,
            self._adapter,
        )

    def save_at_the_end(self, keep: int | None = None) -> str:
        """Save, where there is something to save; returns what became of it. Collective."""
        step = self._progress().step
        if not step:
            return "No step was done before."
        if self.saved_step == step:
            return f"{step} steps were saved before."
        try:
            return f"{step} steps are saved in {self.save(keep)}."
        except CheckpointError as error:
            return f"{error} {self._what_is_lost()}"

    def _say_failed(self, step: int, error: NotSavedError) -> None:
        self._failures += 1
        if self._failures > 1:
            log.info("step %d is not saved either: %s", step, str(error).removeprefix("[checkpoint] "))
            return
        every = self._config.checkpoint.every
        again = every if isinstance(every, int) else 0
        following = (
            f"at step {min(step + again, self._config.run.total_steps)}" if again else f"after {every}"
        )
        log.error(
            "%s The run goes on and tries again %s; until then what was trained after step %d is in memory alone.",
            error,
            following,
            self.saved_step,
        )

    def _what_is_lost(self) -> str:
        return f"What was trained after step {self.saved_step} is not saved."
