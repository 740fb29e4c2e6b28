"""The training loop: micro-batches -> gradients -> reduced sums -> clip -> update, and what surrounds a step.

Loss and gradient are means over the valid tokens of the global batch, whatever the split in micro-batches and ranks:
each adds unnormalised sums and counts, and the division by the global count happens once, in the optimizer's scale.
The trainer knows nothing of how the model is divided: its rank's `ModelShard` does.

Whatever ends a run between two steps, on one rank or on all, what was trained is saved: a rank that meets trouble raises
its flag in the next sums that all reduce, and all save and raise together (`cktrain/agreed.py`). What fails inside a step
leaves the others waiting and cannot be saved; a run alone saves even then, unless its weights were being updated.
`Trainer.fate` says which it was.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cktrain.agreed import AgreedError, AgreedFault, Trouble, agree
from cktrain.best_effort import BestEffort
from cktrain.checkpoint import CheckpointError, Progress, save_checkpoint
from cktrain.checkpoint_folder import step_name
from cktrain.comm.errors import CommError
from cktrain.config import Config
from cktrain.data.loader import Batch, BatchLoader, empty_batch
from cktrain.metrics import MetricsFile, StepMetrics, proportional_set_size
from cktrain.optim.optimizer import Optimizer
from cktrain.optim.schedule import learning_rate
from cktrain.parallel.bubble import measure_bubble
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.pipeline import Clock
from cktrain.parallel.sums import reduce_sums
from cktrain.side_files import SideFiles
from cktrain.stop import StopFlag
from cktrain.validation import Validator

log = logging.getLogger("cktrain")

MAX_SKIPPED = 3


class TrainingDiverged(AgreedError, RuntimeError):
    """Loss or gradient was not finite in three steps in a row."""


@dataclass(frozen=True)
class StepResult:
    """One step: mean loss before the update, global gradient norm before clipping, and whether it was applied."""

    loss: float
    grad_norm: float
    lr: float
    tokens: int
    applied: bool
    stop: bool
    comm_seconds: float


class Trainer:
    """Runs the steps of one rank, on its part of the model."""

    def __init__(
        self,
        config: Config,
        part: ModelShard,
        optimizer: Optimizer,
        loader: BatchLoader,
        progress: Progress,
        *,
        validator: Validator | None = None,
        peak_flops: float | None = None,
        bar: Any = None,
        side: SideFiles | None = None,
    ) -> None:
        self.config = config
        self.part = part
        self.model = part.model
        self.params = part.params
        self.optimizer = optimizer
        self.loader = loader
        self.group = part.ranks.world
        self.progress = progress
        self.validator = validator
        self.peak_flops = peak_flops
        self.bar = bar
        self.flag = StopFlag()
        """Save and stop after the step in which it is raised."""
        self.fate = ""
        """What became of the work, once the run has ended by an error."""
        self.side = side
        """What each checkpoint holds beside the weights (rank 0)."""
        self.stage = part.stage
        self._actions = part.schedule[part.ranks.pipeline.rank]
        self._skipped_in_a_row = 0
        self._trouble: Trouble | None = None
        self._updating = False
        self._saved_step = progress.step  # what it was resumed from, or none

    @property
    def checkpoint_folder(self) -> Path:
        """Where this run's checkpoints stand."""
        return Path(self.config.run.dir) / "checkpoints"

    def step(self, *, stop: bool = False) -> StepResult:
        """Compute the next step and update the weights; `stop`: tell the other ranks that it is to be the last one."""
        part, waited_before = self.part, self.part.ranks.waiting.seconds
        step = self.progress.step + 1
        batches, trouble = self._batches()
        trouble = self._trouble or trouble
        part.data.begin()
        losses, count = self.stage.train(batches, self._actions, part.data.end_micro_batch)
        part.data.finish()
        part.partial.sum()
        sums = reduce_sums(part.ranks, losses, count, part.squared_norm(), stop, trouble is not None)
        if sums.trouble:
            self._end_together(trouble)
        tokens = max(sums.tokens, 1)
        loss = sums.loss_sum / tokens
        norm = math.sqrt(sums.squared_norm) / tokens
        lr = learning_rate(self.config.schedule, self.config.optimizer.lr, self.config.run.steps, step)
        applied = math.isfinite(loss) and math.isfinite(norm)
        self._updating = True
        if applied:
            limit = self.config.optimizer.clip_grad_norm
            clip = min(1.0, limit / norm) if limit and norm else 1.0
            part.data.update(self.optimizer, lr, clip / tokens, self.progress.updates + 1)
        self.progress = replace(
            self.progress,
            step=step,
            updates=self.progress.updates + applied,
            tokens=self.progress.tokens + sums.tokens,
            examples=self.progress.examples + self.config.batch.global_batch_size,
        )
        self._updating = False
        waited = part.ranks.waiting.seconds - waited_before
        return StepResult(loss, norm, lr, sums.tokens, applied, sums.stop, waited)

    def _batches(self) -> tuple[list[Batch], Trouble | None]:
        """The micro-batches of the next step, and what is wrong with them.

        Bad ones are replaced by empty ones: the other ranks compute with this one before all hear of it.
        """
        try:
            return self.loader.batch(self.progress.examples), None
        except Exception as error:
            shape = self.config.batch.micro_batch_size, self.config.data.sequence_length
            return [empty_batch(*shape)] * self.part.micro_batches, Trouble.of(error)

    def run(self) -> bool:
        """Train to the last step. Returns True when done, False when a signal or the clock stopped it, after saving.

        Raises:
            AgreedError: on all ranks, for what any of them met between two steps; its text says what is saved.
            Exception: what this rank alone met inside a step; `fate` says whether anything is saved, and why not.
        """
        first = self.progress.step + 1
        last = self.config.run.steps
        if first > last:
            log.info("all %d steps are done already: nothing to train", last)
            return True
        metrics = (
            MetricsFile(Path(self.config.run.dir) / "metrics.jsonl", first - 1)
            if self.group.rank == 0
            else None
        )
        try:
            with self.flag:
                self.flag.at_once = False
                return self._run(first, last, metrics)
        except AgreedError:  # its text says what is saved
            raise
        except Exception as error:
            self.fate = self._save_alone(error)
            if isinstance(error, ValueError):  # not the user's input: that is agreed on
                raise AgreedFault(f"{type(error).__name__}: {error}") from error
            raise
        finally:
            if metrics is not None:
                metrics.close()

    def _run(self, first: int, last: int, metrics: MetricsFile | None) -> bool:
        window = _Window()
        watching = BestEffort("[trainer] the run cannot say how it goes", "It goes on.")
        for step in range(first, last + 1):
            data_before = self.loader.wait_seconds
            result = self.step(stop=bool(self.flag))
            with watching:
                window.add(result, self.loader.wait_seconds - data_before)
                if step == first:
                    self.stage.clock = Clock()  # without what the first step does once
                if self.bar is not None:
                    self.bar.update(step, result.loss, window.tokens_per_second())
                if step in (1, last) or step % self.config.log.every == 0:
                    self._log(step, result, window, metrics)
                    window = _Window()
            self._check_finite(step, result)
            every = self.config.checkpoint.every
            if step == last or result.stop or (every and step % every == 0):
                self.save()  # before validation, which may take longer than a run that is stopped has left
            try:
                self._validate(step, last, metrics, watching)
            except (AgreedError, CommError):
                raise
            except Exception as error:
                if self.group.size == 1:
                    raise
                log.error("after step %d", step, exc_info=error)
                self._trouble = Trouble(f"{type(error).__name__}: {error}", is_input=False)
            if step == last or result.stop:
                self._end_together(self._trouble)
            if result.stop and step < last:
                path = self.checkpoint_folder / step_name(step)
                log.info("stopped by %s after step %d; checkpoint %s", self.flag.reason, step, path)
                return False
        with watching:
            self._log_bubble()
        return True

    def save(self, keep: int | None = None) -> Path:
        """Write a checkpoint and keep so many (None: as configured). Collective; all ranks learn whether it worked."""
        path = self.checkpoint_folder / step_name(self.progress.step)
        save_checkpoint(
            self.checkpoint_folder,
            self.progress,
            self.config,
            self.params,
            self.optimizer,
            self.part.owned,
            self.group,
            self.config.checkpoint.keep if keep is None else keep,
            self.side,
        )
        self._saved_step = self.progress.step
        log.info("saved %s", path)
        return path

    def _end_together(self, trouble: Trouble | None) -> None:
        """Save what was trained up to the last whole step, then raise the same error on all ranks, if any has one."""
        if (agreed := agree(self.group, trouble)) is not None:
            raise type(agreed)(f"{agreed} {self._save_at_the_end()}")

    def _save_at_the_end(self, keep: int | None = None) -> str:
        """Save, where there is something to save; returns what became of it. Collective."""
        step = self.progress.step
        if not step:
            return "No step was done before."
        if self._saved_step == step:
            return f"{step} steps were saved before."
        try:
            return f"{step} steps are saved in {self.save(keep)}."
        except CheckpointError as error:
            return f"What was trained is not saved: {error}"

    def _save_alone(self, error: Exception) -> str:
        """Save after an error that this rank alone knows of, where no other rank is needed for it."""
        step = self.progress.step
        if isinstance(error, CommError):
            return f"Not saved: what was trained after step {self._saved_step}, since the ranks have lost each other."
        if self._updating:
            return f"Not saved: what was trained after step {self._saved_step}, since step {step + 1} was half applied."
        if self.group.size > 1:
            return (
                f"Not saved: what was trained after step {self._saved_step}, since the other ranks wait for this one "
                f"inside of what it began after step {step}."
            )
        try:
            return self._save_at_the_end()
        except Exception as again:
            return (
                f"Not saved: what was trained after step {self._saved_step}, since saving failed too: {again}"
            )

    def _validate(self, step: int, last: int, metrics: MetricsFile | None, watching: BestEffort) -> None:
        every = self.config.data.validation.every
        if self.validator is None or not every or (step % every and step != last):
            return
        try:
            result = self.validator.run()
        except AgreedError as error:
            raise type(error)(f"{error} {self._save_at_the_end()}") from None
        with watching:
            bits = "" if result.bits_per_byte is None else f"  bits_per_byte: {result.bits_per_byte:.4f}"
            log.info(
                "validate step: %d  loss: %.5f%s  tokens: %s", step, result.loss, bits, f"{result.tokens:,}"
            )
            if metrics is not None:
                metrics.write({"step": step, "val_loss": result.loss, "bits_per_byte": result.bits_per_byte})

    def _check_finite(self, step: int, result: StepResult) -> None:
        if result.applied:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        log.warning("step %d skipped: %s. No weight was changed.", step, what)
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"[trainer] all ranks: {what} at step {step}, the third skipped step in a row. "
                "Lower optimizer.lr, or look at the data of these steps. "
                # The weights are those from before the skipped steps, but they may be on their way to nowhere.
                f"{self._save_at_the_end(keep=sys.maxsize)} Older checkpoints are untouched: checkpoint.resume takes one."
            )

    def _log(self, step: int, result: StepResult, window: _Window, metrics: MetricsFile | None) -> None:
        tps = window.tokens_per_second()
        flops = tps * self.part.flops_per_token
        record = StepMetrics(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            tokens=self.progress.tokens,
            tps=tps,
            tflops=flops / 1e12,
            mfu=None if self.peak_flops is None else flops / self.peak_flops,
            memory_bytes=proportional_set_size(),
            comm_ms=1e3 * window.comm_seconds / window.steps,
            data_ms=1e3 * window.data_seconds / window.steps,
        )
        log.info(record.line(window.seconds() / window.steps, self.config.run.steps - step))
        if metrics is not None:
            metrics.write(record)

    def _log_bubble(self) -> None:
        bubble = measure_bubble(self.stage, self.part.schedule)
        if bubble is not None and self.stage.group.size > 1:
            log.info(
                "pipeline bubble: %.1f%%  schedule's own: %.1f%%  step: %.1fms  simulated: %.1fms",
                100 * bubble.measured,
                100 * bubble.simulated,
                1e3 * bubble.step_seconds,
                1e3 * bubble.simulated_seconds,
            )


class _Window:
    """Steps since the last log line."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.steps = 0
        self.tokens = 0
        self.comm_seconds = 0.0
        self.data_seconds = 0.0

    def add(self, result: StepResult, data_seconds: float) -> None:
        self.steps += 1
        self.tokens += result.tokens
        self.comm_seconds += result.comm_seconds
        self.data_seconds += data_seconds

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds()
