"""The progress bar of a training run: step, loss, tokens per second, time left. Silent where nobody watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StepBar:
    """Shown on rank 0's terminal; a console that is no terminal shows nothing but the log lines."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
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
        )
        self._task = self._progress.add_task("", total=steps, completed=done, loss=float("nan"), tps=0.0)

    def __enter__(self) -> StepBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the step that was just done."""
        self._progress.update(self._task, completed=step, loss=loss, tps=tokens_per_second)
