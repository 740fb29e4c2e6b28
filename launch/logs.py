"""Where a run's messages go: rank 0's to the terminal, every rank's to RUN/rankN.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console


def set_up_logging(run_dir: Path, rank: int, size: int = 1) -> Console:
    """Send the `cktrain` logger to this rank's file and, on rank 0, to the console that is returned."""
    logger = logging.getLogger("cktrain")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(run_dir / f"rank{rank}.log")
    except OSError as error:
        raise ValueError(
            f"[launch] cannot write to run.dir {run_dir}: {error.strerror}. Choose another folder."
        ) from None
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    # mpirun gives its ranks a pseudo-terminal even when its own output goes to a file.
    console = Console(file=sys.stdout, highlight=False, force_terminal=False if size > 1 else None)
    if rank == 0:
        logger.addHandler(_ConsoleHandler(console))
    return console


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bar, a message on a line however long."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "bold red" if record.levelno >= logging.WARNING else None
        self._console.print(self.format(record), style=style, markup=False, soft_wrap=True)
