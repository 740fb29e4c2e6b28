"""Where a run's messages go: rank 0's to the terminal, every rank's to RUN/rankN.log. Both only watch the run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rich.console import Console

from cktrain.best_effort import BestEffort, LineFile, WatchedStream


def remove_handlers() -> None:
    """Take away what `set_up_logging` has added: messages go where the program sends them again."""
    logger = logging.getLogger("cktrain")
    for old in list(logger.handlers):
        if isinstance(old, _FileHandler | _ConsoleHandler):
            logger.removeHandler(old)
            old.close()
    logger.propagate = True


def set_up_logging(run_dir: Path, rank: int, size: int = 1) -> Console:
    """Send the `cktrain` logger to this rank's file and, on rank 0, to the console that is returned.

    Raises ValueError where the run's folder cannot be made or written: its checkpoints would have no place. A log file
    that alone cannot be written is a warning.
    """
    logger = logging.getLogger("cktrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK | os.X_OK):
            raise OSError(0, "it may not be written")
    except OSError as error:
        raise ValueError(
            f"[launch] cannot write to run.dir {run_dir}: {error.strerror}. Choose another folder."
        ) from None
    logger.addHandler(_FileHandler(run_dir / f"rank{rank}.log"))
    stream = (
        sys.stdout if isinstance(sys.stdout, WatchedStream) else WatchedStream(sys.stdout, "standard output")
    )
    # mpirun gives its ranks a pseudo-terminal even when its own output goes to a file.
    console = Console(file=stream, highlight=False, force_terminal=False if size > 1 else None)  # type: ignore[arg-type]
    if console.width < 1:  # COLUMNS=0, a terminal without a size: rich would print nothing
        console.width = 80
    if rank == 0:
        logger.addHandler(_ConsoleHandler(console, stream))
    return console


class _FileHandler(logging.Handler):
    """Appends to a file, a message on a line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._file = LineFile(path, "[launch] the log")

    @property
    def failing(self) -> bool:
        """Whether the last message could not be written."""
        return self._file.effort.failing

    def emit(self, record: logging.LogRecord) -> None:
        self._file.write(self.format(record))


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bar, a message on a line however long."""

    def __init__(self, console: Console, stream: WatchedStream) -> None:
        super().__init__()
        self._console = console
        self._stream = stream
        self._effort = BestEffort("[launch] the terminal cannot show a message", "The run's log has it.")

    @property
    def failing(self) -> bool:
        """Whether the last message could not be shown."""
        return self._stream.failing or self._effort.failing

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_stderr", False):  # it stands there already
            return
        style = "bold red" if record.levelno >= logging.WARNING else None
        with self._effort:
            self._console.print(self.format(record), style=style, markup=False, soft_wrap=True)
