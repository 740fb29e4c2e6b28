"""What a comparison finds: one `Finding` per case and kind of result, made by functions of two plain values.

Numbers are equal when their bits are: NaN equals the same NaN, 0.0 differs from -0.0.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

METRICS = ("loss", "grad_norm", "lr", "tokens", "val_loss", "bits_per_byte")
"""The fields of metrics.jsonl that a run's arithmetic determines; the others are times and memory."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    case: str
    what: str
    verdict: str
    """same, different, fewer, more, failed"""
    detail: str = ""

    @property
    def is_worse(self) -> bool:
        """Whether it makes the comparison fail."""
        return self.verdict not in ("same", "fewer")


def bits(value: Any) -> Any:
    """A value that is equal to another's exactly if both have the same bits."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def compare_metrics(
    case: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], least: int
) -> Finding:
    """Lines of metrics.jsonl. Both sides must have at least `least` training steps.

    A difference names the first step that has one, the field and both values.
    """
    tables = [_by_step(lines) for lines in (old, new)]
    steps = sorted({step for table in tables for step, _ in table})
    what = f"losses of {least} steps"
    for step in steps:
        for field in METRICS:
            values = [table.get((step, field), "missing") for table in tables]
            if bits(values[0]) != bits(values[1]):
                return Finding(
                    case, what, "different", f"step {step}: {field} {values[0]!r}, now {values[1]!r}"
                )
    trained = sum(field == "loss" for _, field in tables[0])
    if trained < least:
        return Finding(case, what, "failed", f"both have {trained} steps")
    return Finding(case, what, "same", f"last {_last(tables[0])}")


def _by_step(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str], Any]:
    return {(line["step"], field): line[field] for line in lines for field in METRICS if field in line}


def _last(table: Mapping[tuple[int, str], Any]) -> str:
    step = max(step for step, field in table if field == "loss")
    return f"loss {table[step, 'loss']!r}"


def compare_tensors(
    case: str, what: str, old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]
) -> Finding:
    """Names, types, shapes and bytes. A difference names the first tensor that has one."""
    problem = tensor_difference(old, new)
    if problem:
        return Finding(case, what, "different", problem)
    if not old:
        return Finding(case, what, "failed", "neither side has a tensor")
    elements = sum(tensor.size for tensor in old.values())
    return Finding(case, what, "same", f"{len(old)} tensors, {elements:,} elements")


def tensor_difference(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> str:
    """The first difference and how many tensors have one; empty when there is none."""
    problems = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in new or name not in old:
            problems.append(f"{name} is {'missing now' if name in old else 'new'}")
            continue
        a, b = old[name], new[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            problems.append(f"{name} is {a.dtype} {a.shape}, now {b.dtype} {b.shape}")
        elif a.tobytes() != b.tobytes():
            flat = [np.ascontiguousarray(x).reshape(-1) for x in (a, b)]
            words = [x.view(f"u{x.dtype.itemsize}") for x in flat]
            unlike = np.flatnonzero(words[0] != words[1])
            at = int(unlike[0])
            problems.append(
                f"{name} in {unlike.size:,} of {a.size:,} elements, first {at}: {flat[0][at]!s}, now {flat[1][at]!s}"
            )
    if not problems:
        return ""
    count = len({*old, *new})
    return f"{len(problems)} of {count} tensors: {problems[0]}"


def compare_files(case: str, what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Finding:
    """Digests by file name."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            how = "is missing now" if name not in new else "is new" if name not in old else "differs"
            return Finding(case, what, "different", f"{name} {how}")
    if not old:
        return Finding(case, what, "failed", "neither side has a file")
    return Finding(case, what, "same", f"{len(old)} files")


def compare_text(case: str, what: str, old: str, new: str) -> Finding:
    """What both printed. A difference shows both from where it begins."""
    if old == new:
        return Finding(case, what, "same", repr(old.strip())[:40])
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return Finding(
        case, what, "different", f"character {at}: {old[at : at + 30]!r}, now {new[at : at + 30]!r}"
    )


def compare_bytes(case: str, what: str, old: Mapping[str, int], new: Mapping[str, int]) -> Finding:
    """Bytes by purpose. The sum decides; the detail names the purposes that changed."""
    before, now = sum(old.values()), sum(new.values())
    changed = [
        f"{name} {old.get(name, 0):,}, now {new.get(name, 0):,}"
        for name in [*old, *(name for name in new if name not in old)]
        if old.get(name, 0) != new.get(name, 0)
    ]
    if not before:
        return Finding(case, what, "failed", "old says no bytes")
    verdict = "same" if before == now else "fewer" if now < before else "more"
    detail = f"{before:,}" if before == now else f"{before:,}, now {now:,}"
    return Finding(case, what, verdict, "; ".join([detail, *changed]))
