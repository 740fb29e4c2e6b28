"""The RDMA tests that a marker selects, as a guest's command, and what came of them there."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import stages

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/comm/rdma"
SHOWN = ("-v", "--durations=5")
"""Each test by its name before it runs: a guest that reaches its limit shows the last line."""
OF_B = 5
"""The status of B's command where all is well: of several ones B's is what counts."""
LAST_LINES = 12
"""Of a test that failed in a guest: of several ones all are to stand in what the stage shows of this one."""


def pytest_command(marker: str, *options: str) -> list[str]:
    """pytest without a file of its own to find, by a marker's expression."""
    program = "import pytest, sys; sys.exit(pytest.main())"
    return [sys.executable, "-c", program, "-m", marker, "-p", "no:cacheprovider", *options]


def selected(marker: str) -> tuple[int, list[str]]:
    """How many tests there are, and the command that runs them in a guest.

    They are collected on the host, where pytest leaves what it compiled for the guests; there only files that have one are
    looked at.
    """
    shown = subprocess.run(
        pytest_command(marker, TESTS, "-q", "--collect-only"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=True,
    )
    files = [line.partition("::")[0] for line in shown.stdout.splitlines() if "::" in line]
    return len(files), pytest_command(marker, *dict.fromkeys(files), *SHOWN)


def assert_all_passed(
    reports: Sequence[Path], expected: int, status: int, printed: str, good: int = 0
) -> None:
    """So many tests passed in each guest and no other ran; else the failed ones are named, with the end of what they said.

    `good` is the status that the command then has. `printed` is what the guests printed: the end of it is shown where one
    ended before its tests did.
    """
    counts, failures = [], []
    for report in reports:
        count: Counter[str] = Counter()
        for case in ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ():
            if failure := stages.failure_of(case, LAST_LINES):
                failures.append(f"{report.stem}: {failure}")
            count["failed" if failure else "skipped" if case.find("skipped") is not None else "passed"] += 1
        counts.append(count)
    if failures:
        pytest.fail("\n".join([f"failed in guests: {len(failures)}", *failures]), pytrace=False)
    if status != good:
        end = "\n".join(printed.splitlines()[-LAST_LINES:])
        pytest.fail(f"the guest ended with status {status} after {counts} tests:\n{end}", pytrace=False)
    assert counts == [{"passed": expected}] * len(reports)
