"""The training loop: micro-batches -> gradients -> reduced sums -> clip -> update; who observes it is told at each moment.

Loss and gradient are means over the valid tokens of the global batch (or its pairs), whatever the split in micro-batches and
ranks: each adds unnormalised sums and counts, and the division by the global count happens once, in the optimizer's scale.
The trainer knows nothing of how the model is divided: its rank's `ModelShard` does. What is minimised is the objective's
matter (`objective.py`); log lines, metrics, checkpoints and validation are observers (`observer.py`).

Whatever ends a run between two steps, on one rank or on all, what was trained is saved: a rank that meets trouble raises
its flag in the next sums that all reduce, and all save and raise together (`cktrain/agreed.py`). What fails inside a step
leaves the others waiting and cannot be saved; a run alone saves even then, unless its weights were being updated.
`Trainer.fate` says which it was.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cktrain.agreed import AgreedError, AgreedFault, Trouble, agree
from cktrain.best_effort import BestEffort
from cktrain.checkpoint import Progress
from cktrain.comm.errors import CommError
from cktrain.config import Config
from cktrain.data.loader import Batch, BatchLoader, empty_batch
from cktrain.hf.peft_folder import PeftAdapter
from cktrain.optim.optimizer import Optimizer
from cktrain.optim.schedule import learning_rate, position
from cktrain.parallel.bubble import measure_bubble
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.pipeline import Clock
from cktrain.parallel.step_reduction import reduce_step
from cktrain.side_files import SideFiles
from cktrain.training.best_checkpoint import BestCheckpoint
from cktrain.training.checkpoint_saver import CheckpointSaver
from cktrain.training.divergence import DivergenceCheck
from cktrain.training.log_line import LogLine
from cktrain.training.meter import Meter
from cktrain.training.metrics_file import MetricsFile
from cktrain.training.objective import NextToken, Objective
from cktrain.training.observer import Observer, Observers, Step, StepResult
from cktrain.training.periodic_validation import PeriodicValidation
from cktrain.training.run_clock import RunClock
from cktrain.training.stop import LEAVE_AFTER_S, StopFlag, StopRequested
from cktrain.training.validation import ValidationResult, Validator
from cktrain.training_data import shares_in_words

log = logging.getLogger("cktrain")

_ROWS_NAMED = 16


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
        observers: Sequence[Observer] = (),
        side: SideFiles | None = None,
        adapter: PeftAdapter | None = None,
        objective: Objective | None = None,
    ) -> None:
        """`observers` only watch, as the log and the metrics file do; rank 0 has in `side` what stands beside weights.

        `objective`: None is next token.
        """
        self.config = config
        self.part = part
        self.model = part.model
        self.params = part.params
        self.optimizer = optimizer
        self.loader = loader
        self.group = part.ranks.world
        self.progress = progress
        self.objective: Objective = NextToken() if objective is None else objective
        self.validator = validator
        self.peak_flops = peak_flops
        self.observers = list(observers)
        """Of this rank, who watch its run; more may be added before it begins."""
        self.flag = StopFlag()
        """Save and stop after the step in which it is raised."""
        self.fate = ""
        """What became of the work, once the run has ended by an error."""
        self.saver = CheckpointSaver(config, part, optimizer, lambda: self.progress, side, adapter)
        self.stage = part.stage
        self._clock = RunClock()
        self._told: Observers | None = None
        self._trouble: Trouble | None = None
        self._updating = False
        self._enough = ""
        """Why the run is to end before its last step, as all ranks know."""

    @property
    def checkpoint_folder(self) -> Path:
        """Where this run's checkpoints stand."""
        return self.saver.folder

    def step(self, *, stop: bool = False) -> StepResult:
        """Compute the next step and update the weights; `stop`: tell the other ranks that it is to be the last one.

        Raises StopRequested in a run alone that was asked to stop and would compute gradients for too long: no weight has
        changed, and the step can be done again.
        """
        part, waited_before = self.part, self.part.ranks.comm_timer.seconds
        step = self.progress.step + 1
        batches, trouble = self._batches()
        trouble = self._trouble or trouble
        with self.flag.left_if_long() if self.group.size == 1 else contextlib.nullcontext():
            batches = self.objective.prepare(part.stage, batches, "train")
            found = part.gradients(batches, self.objective)
        norms, troubled, clock = part.squared_norm(), trouble is not None, self._clock.seconds
        names = self.objective.measures
        sums = reduce_step(part.ranks, found, norms, stop, troubled, clock, len(names))
        if sums.trouble:
            self._end_together(trouble)
        if sums.tokens == 0:
            self._say_that_nothing_is_learned(step)
        count = max(sums.count, 1)
        loss = sums.loss_sum / count
        norm = math.sqrt(sums.squared_norm) / count
        run = self.config.run
        at = position(step, run.total_steps, sums.seconds, run.max_seconds)
        lr = learning_rate(self.config.schedule, self.config.optimizer.lr, run.total_steps, at)
        applied = math.isfinite(loss) and math.isfinite(norm)
        self._updating = True
        if applied:
            limit = self.config.optimizer.clip_grad_norm
            clip = min(1.0, limit / norm) if limit and norm else 1.0
            part.data.update(self.optimizer, lr, clip / count, self.progress.updates + 1)
        self.progress = replace(
            self.progress,
            step=step,
            updates=self.progress.updates + applied,
            tokens=self.progress.tokens + sums.tokens,
            examples=self.progress.examples + self.config.batch.resolved_global_batch_size,
            seconds=sums.seconds,
        )
        self._updating = False
        waited = part.ranks.comm_timer.seconds - waited_before
        measures = dict(zip(names, sums.measures, strict=True))
        return StepResult(loss, norm, lr, sums.tokens, applied, sums.stop, waited, sums.seconds, measures)

    def _batches(self) -> tuple[list[Batch], Trouble | None]:
        """The micro-batches of the next step, and what is wrong with them.

        Bad ones are replaced by empty ones: the other ranks compute with this one before all hear of it.
        """
        try:
            return self.loader.batch(self.progress.examples), None
        except Exception as error:
            shape = self.config.batch.resolved_micro_batch_size, self.config.data.sequence_length
            return [empty_batch(*shape)] * self.part.micro_batches, Trouble.of(error)

    def _say_that_nothing_is_learned(self, step: int) -> None:
        rows = self.loader.named(self.progress.examples)
        named = ", ".join(rows[:_ROWS_NAMED]) + (", ..." if len(rows) > _ROWS_NAMED else "")
        log.warning(
            "[trainer] warning: step %d has no label: every token of its %d sequences (%s of the data, counted from 0) is "
            "masked, so nothing is learned in it. Look at them with `cktrain data show`.",
            step,
            self.config.batch.resolved_global_batch_size,
            named,
        )

    def run(self) -> bool:
        """Train to the last step. Returns True when done, False when a signal or the clock stopped it, after saving.

        Raises:
            AgreedError: on all ranks, for what any of them met between two steps; its text says what is saved.
            Exception: what this rank alone met inside a step; `fate` says whether anything is saved, and why not.
        """
        first, last = self.progress.step + 1, self.config.run.total_steps
        if first > last:
            log.info(
                "all %d steps are done already: nothing to train. More run.steps or run.epochs go on.", last
            )
            return True
        if self._time_is_over(self.progress.seconds):
            log.info(
                "run.max_time %s is over, after step %d of %d: nothing to train. Set a longer one to go on.",
                self.config.run.max_time,
                first - 1,
                last,
            )
            return True
        observers = self._told = self._all_observers()
        try:
            with self.flag:
                self.flag.at_once, self.flag.say = False, self._say_what_is_waited_for
                self._clock.begin(self.progress.seconds)
                self._trouble = observers.begun(first - 1, last)
                return self._run(first, last, observers)
        except AgreedError:  # its text says what is saved
            raise
        except KeyboardInterrupt:  # a second one
            self.fate = f"Not saved: what was trained after step {self.saver.saved_step}."
            raise
        except Exception as error:
            self.fate = self._save_alone(error)
            if isinstance(error, ValueError):  # not the user's input: that is agreed on
                raise AgreedFault(f"{type(error).__name__}: {error}") from error
            raise
        finally:
            observers.ended()

    def _run(self, first: int, last: int, observers: Observers) -> bool:
        tokens = self.config.batch.resolved_global_batch_size * self.config.data.sequence_length
        meter = Meter(self.part.flops_per_token, self.peak_flops, tokens)
        measuring = BestEffort("[trainer] the run cannot say how it goes", "It goes on.")
        for number in range(first, last + 1):
            data_before = self.loader.wait_seconds
            try:
                result = self.step(stop=bool(self.flag))
            except StopRequested:
                self._leave(number)
                return False
            meter.add(result, self.loader.wait_seconds - data_before)
            over = self._time_is_over(result.seconds)
            step = Step(number, result, number == last or over, meter.tokens_per_second)
            if number == first:
                self.stage.clock = Clock()  # without what the first step does once
            if number == 1 or step.last or number % self.config.log.every == 0:
                with measuring:
                    shares = self.loader.shares(self.progress.examples)
                    record = meter.record(number, result, self.progress.tokens, self._epoch(), shares)
                    pace = meter.seconds_per_step
                    observers.measured(record, pace, self._steps_left(step, pace))
                meter.reset()
            self._trouble = observers.stepped(step) or self._trouble
            if step.ends or self._enough:
                self._end_together(self._trouble)
            if result.stop and not step.last:
                path = self.saver.path(number)
                log.info("stopped by %s after step %d; checkpoint %s", self.flag.reason, number, path)
                return False
            if over and number != last:
                log.info(
                    "ended after step %d of %d: run.max_time %s is over",
                    number,
                    last,
                    self.config.run.max_time,
                )
                break
            if self._enough and not step.last:
                if self.saver.saved_step != number:
                    self.save()
                log.info("ended after step %d of %d: %s", number, last, self._enough)
                break
        with measuring:
            self._log_bubble()
            if (shares := self.loader.shares(self.progress.examples)) is not None:
                log.info(shares_in_words(shares))
        return True

    def _leave(self, number: int) -> None:
        """Save what was trained before the step that is given up. Raises NotSavedError."""
        log.info(
            "stopped by %s: step %d is left, and computed again when the run goes on",
            self.flag.reason,
            number,
        )
        if self.progress.step != self.saver.saved_step:
            self.save()
        elif number == 1:
            log.info("nothing was trained, nothing is lost")

    def _say_what_is_waited_for(self, name: str) -> None:
        number = self.progress.step + 1
        what = f"step {number} is finished and saved, then the run ends"
        if self.group.size == 1:
            what += f"; after {LEAVE_AFTER_S:g} s it is left, and what was trained before it is saved"
        log.info(
            "[stop] %s: %s. Ctrl-C (SIGINT) now ends at once, without what was trained after step %d",
            name,
            what,
            self.saver.saved_step,
        )

    def _all_observers(self) -> Observers:
        """In the order in which they are told: a step is saved before it is validated, which may take longer than a run
        that is stopped has left.
        """
        found: list[Observer] = [LogLine(), *self.observers]
        if self.group.rank == 0:
            found.append(MetricsFile(Path(self.config.run.dir) / "metrics.jsonl"))
        found += [DivergenceCheck(self.saver), self.saver]
        if self.validator is not None:
            tell = self._tell_validated
            self.validator.asked_to_stop = self.flag.__bool__
            data = self.validator.fingerprint
            found.append(BestCheckpoint(self.config.checkpoint, self.saver, self._end_early, data))
            found.append(
                PeriodicValidation(
                    self.config, self.validator, self.saver, tell, lambda: self.progress, self.loader.windows
                )
            )
        return Observers(found, alone=self.group.size == 1)

    def _tell_validated(self, step: int, result: ValidationResult) -> None:
        assert self._told is not None
        self._trouble = self._told.validated(step, result) or self._trouble

    def _end_early(self, why: str) -> None:
        self._enough = why

    def _time_is_over(self, seconds: float) -> bool:
        most = self.config.run.max_seconds
        return most is not None and seconds >= most

    def _steps_left(self, step: Step, seconds_per_step: float) -> int:
        """As many as the run has, or as it has time for."""
        left, most = self.config.run.total_steps - step.number, self.config.run.max_seconds
        if most is None:
            return left
        return min(left, math.ceil(max(0.0, most - step.result.seconds) / max(seconds_per_step, 1e-9)))

    def _epoch(self) -> float | None:
        """Passes over the data that are done, in a run that is as long as its epochs."""
        return None if self.config.run.epochs is None else self.progress.examples / self.loader.windows

    def save(self, keep: int | None = None) -> Path:
        """Write a checkpoint and keep so many (None: as configured). Collective; all ranks learn whether it worked."""
        return self.saver.save(keep)

    def _end_together(self, trouble: Trouble | None) -> None:
        """Save what was trained up to the last whole step, then raise the same error on all ranks, if any has one."""
        if (agreed := agree(self.group, trouble)) is not None:
            raise type(agreed)(f"{agreed} {self.saver.save_at_the_end()}")

    def _save_alone(self, error: Exception) -> str:
        """Save after an error that this rank alone knows of, where no other rank is needed for it."""
        step, saved = self.progress.step, self.saver.saved_step
        if isinstance(error, CommError):
            return f"Not saved: what was trained after step {saved}, since the ranks have lost each other."
        if self._updating:
            return f"Not saved: what was trained after step {saved}, since step {step + 1} was half applied."
        if self.group.size > 1:
            return (
                f"Not saved: what was trained after step {saved}, since the other ranks wait for this one "
                f"inside of what it began after step {step}."
            )
        try:
            return self.saver.save_at_the_end()
        except Exception as again:
            return f"Not saved: what was trained after step {saved}, since saving failed too: {again}"

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
