"""What a run says about itself: the log line, `metrics.jsonl` and this process's memory.

The log line keeps the order of fields that people's scripts already look for:

    step: 10  loss: 4.21130  grad_norm: 0.91  memory: 1.90GiB(8%)  tps: 1,234  tflops: 0.31  mfu: 71.2%  lr: 3.0e-04 …

A line of metrics.jsonl is one JSON object; training lines have `loss`, validation lines `val_loss`. All of it only
watches: where the file or the figures cannot be had, the run goes on without them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cktrain.best_effort import LineFile
from cktrain.checkpoint_folder import free_name

log = logging.getLogger("cktrain")


@dataclass(frozen=True)
class StepMetrics:
    """One logged training step."""

    step: int
    """From 1."""
    loss: float
    """Mean over the valid tokens of the global batch, before the update (nats per token)."""
    grad_norm: float
    """Global norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """Tokens seen since the run began."""
    tps: float
    """Tokens per second of the whole job since the last logged step."""
    tflops: float
    mfu: float | None
    """tflops over the measured peak of all ranks; None when no peak was measured."""
    memory_bytes: int | None
    """This process's proportional set size; None where the system does not say."""
    comm_ms: float
    """Time per step that this rank waited for others."""
    data_ms: float
    """Time per step that this rank waited for data."""

    def line(self, seconds_per_step: float, steps_left: int) -> str:
        """The log line."""
        memory = "n/a"
        if self.memory_bytes is not None:
            memory = f"{self.memory_bytes / 2**30:.2f}GiB({100 * self.memory_bytes / _total_memory():.0f}%)"
        mfu = "n/a" if self.mfu is None else f"{100 * self.mfu:.1f}%"
        data_share = 100 * self.data_ms / 1e3 / seconds_per_step if seconds_per_step else 0.0
        fields = (
            f"step: {self.step}",
            f"loss: {self.loss:.5f}",
            f"grad_norm: {self.grad_norm:.4g}",
            f"memory: {memory}",
            f"tps: {self.tps:,.0f}",
            f"tflops: {self.tflops:.3f}",
            f"mfu: {mfu}",
            f"lr: {self.lr:.1e}",
            f"comm: {self.comm_ms:.0f}ms",
            f"data: {data_share:.1f}%",
            f"eta: {format_seconds(seconds_per_step * steps_left)}",
        )
        return "  ".join(fields)


class MetricsFile:
    """Appends to `metrics.jsonl`; a resumed run first drops the lines of steps after the one it resumes from."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self._file = LineFile(path, "[metrics]")
        with self._file.effort:
            self._drop_later(resumed_step)

    def write(self, values: StepMetrics | dict[str, Any]) -> None:
        """One line; a non-finite number becomes null, since JSON has none."""
        record = asdict(values) if isinstance(values, StepMetrics) else values
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean))

    def close(self) -> None:
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
        kept = [line for line in lines if _is_of_step_up_to(line, resumed_step)]
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


def proportional_set_size() -> int | None:
    """Bytes of memory of this process, pages shared with others counted in part (Linux Pss).

    Where the kernel does not tell it, the resident set, which counts them in full; None where it tells neither.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def format_seconds(seconds: float) -> str:
    """3672 -> '1h01m12s'."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m{total % 60:02d}s"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
