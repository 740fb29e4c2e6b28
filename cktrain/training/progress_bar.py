"""The progress bar of a training run: step, loss, tokens per second, time left. Silent where nobody watches."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cktrain.best_effort import BestEffort
from cktrain.training.observer import Observer, Step

EVERY_S = 0.1
"""The bar is drawn again at most so often, and by the caller alone: no thread of its own writes to the terminal."""


class StepBar(Observer):
    """Shown on rank 0's terminal; a console that is no terminal shows nothing but the log lines."""

    def __init__(self, console: Console) -> None:
        self._effort = BestEffort("[launch] the progress bar cannot be shown", "The run goes on without it.")
        self._drawn = 0.0
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[tps]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,  # an error must not depend on the terminal of the bar
        )
        self._task: TaskID | None = None

    def begun(self, done: int, steps: int) -> None:
        """Show it."""
        with self._effort:
            nothing = float("nan")
            self._task = self._progress.add_task("", total=steps, completed=done, loss=nothing, tps=0.0)
            self._progress.start()

    def stepped(self, step: Step) -> None:
        """Show the step that was just done."""
        now = time.monotonic()
        draw = now - self._drawn >= EVERY_S
        if draw:
            self._drawn = now
        with self._effort:
            assert self._task is not None, "begun"
            self._progress.update(
                self._task,
                completed=step.number,
                loss=step.result.loss,
                tps=step.tokens_per_second,
                refresh=draw,
            )

    def ended(self) -> None:
        """Take it away."""
        with self._effort:
            self._progress.stop()
