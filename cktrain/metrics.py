"""What a run says about itself: the log line, `metrics.jsonl` and this process's memory.

The log line keeps the order of fields that people's scripts already look for:

    step: 10  loss: 4.21130  grad_norm: 0.91  memory: 1.90GiB(8%)  tps: 1,234  tflops: 0.31  mfu: 71.2%  lr: 3.0e-04 …

A line of metrics.jsonl is one JSON object; training lines have `loss`, validation lines `val_loss`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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
    memory_bytes: int
    """This process's proportional set size."""
    comm_ms: float
    """Time per step that this rank waited for others."""
    data_ms: float
    """Time per step that this rank waited for data."""

    def line(self, seconds_per_step: float, steps_left: int) -> str:
        """The log line."""
        gib = self.memory_bytes / 2**30
        share = 100 * self.memory_bytes / _total_memory()
        mfu = "n/a" if self.mfu is None else f"{100 * self.mfu:.1f}%"
        data_share = 100 * self.data_ms / 1e3 / seconds_per_step if seconds_per_step else 0.0
        fields = (
            f"step: {self.step}",
            f"loss: {self.loss:.5f}",
            f"grad_norm: {self.grad_norm:.4g}",
            f"memory: {gib:.2f}GiB({share:.0f}%)",
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
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # the line that a killed run was writing
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = path.open("a")

    def write(self, values: StepMetrics | dict[str, Any]) -> None:
        """One line; a non-finite number becomes null, since JSON has none."""
        record = asdict(values) if isinstance(values, StepMetrics) else values
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def proportional_set_size() -> int:
    """Bytes of memory of this process, pages shared with others counted in part (Linux Pss)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("smaps_rollup has a Pss line")


def format_seconds(seconds: float) -> str:
    """3672 -> '1h01m12s'."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m{total % 60:02d}s"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"


def _total_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
