"""What is measured of a step, its log line, and this process's memory.

The log line keeps the order of fields that people's scripts already look for:

    step: 10  loss: 4.21130  grad_norm: 0.91  memory: 1.90GiB(8%)  tps: 1,234  tflops: 0.31  mfu: 71.2%  lr: 3.0e-04 …
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StepMetrics:
    """One logged training step."""

    step: int
    """From 1."""
    loss: float
    """Mean over the valid tokens of the global batch, or its pairs, before the update (nats)."""
    grad_norm: float
    """Global norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """Tokens with a label seen since the run began."""
    tps: float
    """Tokens per second of the whole job since the last logged step, with a label or without: what is computed."""
    tflops: float
    mfu: float | None
    """tflops over the measured peak of all ranks; None when no peak was measured."""
    memory_bytes: int | None
    """This process's proportional set size; None where the system does not say."""
    comm_ms: float
    """Time per step that this rank waited for others."""
    data_ms: float
    """Time per step that this rank waited for data."""
    epoch: float | None = None
    """Passes over the data since the run began, where the run is as long as its epochs."""
    mixture: dict[str, float] | None = None
    """By part of a mixture its share of the sequences since the run began."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the objective measures beside the loss, of this step: of preference the rewards."""

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
            *(() if self.epoch is None else (f"epoch: {self.epoch:.2f}",)),
            *in_words(self.measures),
        )
        return "  ".join(fields)


def in_words(measures: Mapping[str, float]) -> list[str]:
    """What an objective measures, as fields of a log line."""
    return [f"{name}: {value:.4g}" for name, value in measures.items()]


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
