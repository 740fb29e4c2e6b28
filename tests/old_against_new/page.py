"""The result as a table, and as a dated Markdown page."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from findings import Finding
from sides import Side
from step_time import Speed

HEAD = ("case", "what", "verdict", "detail")


def as_table(found: Sequence[Finding], times: Sequence[Speed]) -> str:
    """Columns for a terminal: what is worse stands last, where one looks."""
    rows = [HEAD, *((f.case, f.what, f.verdict, f.detail) for f in sorted(found, key=lambda f: f.is_worse))]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    return "\n".join([*lines, *map(speed_line, times)])


def speed_line(times: Speed) -> str:
    """One case of the speed part."""
    return (
        f"{times.case}: {times.old_ms:.2f} ms, now {times.new_ms:.2f} ms; new/old {times.ratio:.4f}, spread of "
        f"old/old {100 * times.spread:.2f} % in {times.rounds} rounds: {times.verdict}"
    )


def as_page(
    sides: tuple[Side, Side], found: Sequence[Finding], times: Sequence[Speed], seconds: float
) -> str:
    """Markdown: the machine, the commits, the counts, everything that is not the same, and the steps' times."""
    old, new = sides
    worse = [finding for finding in found if finding.is_worse]
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    lines = [
        f"# {old.commit} against {new.commit}",
        "",
        f"{day}, {cpu_name()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}: `python "
        f"tests/old_against_new`, {seconds:.0f} s. {len(found)} comparisons, {len(worse)} worse.",
        "",
    ]
    rows = [f for f in found if f.verdict != "same"]
    if rows:
        lines += ["| case | what | verdict | detail |", "|---|---|---|---|"]
        lines += [f"| {f.case} | {f.what} | {f.verdict} | {f.detail} |" for f in rows] + [""]
    same: dict[str, list[str]] = {}
    for finding in found:
        if finding.verdict == "same":
            same.setdefault(finding.what, []).append(finding.case)
    if same:
        lines += ["| the same | cases |", "|---|---|"]
        lines += [f"| {what} | {'; '.join(names)} |" for what, names in same.items()] + [""]
    if times:
        lines += speed_table("step", times)
    return "\n".join(lines).rstrip("\n") + "\n"


def speed_table(what: str, times: Sequence[Speed]) -> list[str]:
    """Lines of Markdown, one for each case."""
    return [
        f"| {what} | old ms | new ms | new/old | spread of old/old | rounds | |",
        "|---" * 7 + "|",
        *(
            f"| {t.case} | {t.old_ms:.2f} | {t.new_ms:.2f} | {t.ratio:.4f} | {100 * t.spread:.2f} % | {t.rounds} "
            f"| {t.verdict} |"
            for t in times
        ),
    ]


def add_to_page(page: Path, text: str) -> None:
    """A new page, or a further section at the end of one that is there: parts may be compared at different times."""
    before = page.read_text().rstrip("\n") + "\n\n#" if page.exists() else ""
    page.write_text(before + text)


def cpu_name() -> str:
    """As the system names it."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.machine()
