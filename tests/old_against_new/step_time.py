"""Step times of both sides in turns, beside those of old against old in the same turns.

Three `cktrain train` of the same configuration stand ready: old, new, and old again. All are stopped (SIGSTOP) but the
one whose turn it is. A turn begins when the first line of metrics.jsonl has come, since the step under way was stopped
in its middle, and ends when some more have; its figure is the time between the two, over the steps: all that a user
waits for. Who begins rotates from round to round. On a machine that is shared with others the speed changes from second to
second: there, many rounds of short turns narrow the spread, and long turns do not.

What other tenants of a machine take only ever makes a turn longer, so a side's figure is the lower quartile of its turns.
The rounds are cut into five parts, each with processes of its own; a part gives two ratios of such figures, new/old and old
again/old. The median of the first is the result; the spread is the furthest from 1 that any part's second lies.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from case_table import PREPARED, Blocks, merged
from comparison import flattened
from sides import CommandFailed, Side

AT_MOST = 0.02
"""What a spread may be for the result to count."""
WAIT_S = 120.0
PARTS = 5
"""Of the rounds; the processes of each are started anew."""
LEAST = 3
"""Rounds of a part; there are fewer parts where there are too few rounds."""

ENDLESS: Blocks = {
    "run": {"steps": 1_000_000},
    "data": {"path": PREPARED, "validation": {"every": 0}},
    "checkpoint": {"every": 0, "resume": "none"},
    "log": {"every": 1},
}
SHORTER: Blocks = {
    "model": {"num_hidden_layers": 2, "vocab_size": 8192},
    "data": {"sequence_length": 256},
    "batch": {"micro_batch_size": 2, "global_batch_size": 2},
}


@dataclass(frozen=True)
class SpeedCase:
    """A configuration whose step is timed."""

    name: str
    file: str
    """Of the old side's tree: both sides read it, and the new one reads what the old one could."""
    blocks: Blocks
    steps: int
    """In a turn."""


DEMO = SpeedCase("demo", "examples/demo.yaml", {"precision": "fp32"}, 2)
CASES = {
    "demo": DEMO,
    "small": SpeedCase(
        "reference, 2 layers of 12, 8,192 words, 2 x 256 tokens, fp32",
        "docs/benchmarks/reference.yaml",
        merged(SHORTER, {"precision": "fp32"}),
        1,
    ),
    "reference": SpeedCase("reference, fp32", "docs/benchmarks/reference.yaml", {"precision": "fp32"}, 1),
    "reference-bf16": SpeedCase(
        "reference, bf16", "docs/benchmarks/reference.yaml", {"precision": "bf16"}, 1
    ),
}


@dataclass(frozen=True)
class Speed:
    """What came of one case."""

    case: str
    old_ms: float
    new_ms: float
    ratio: float
    """Median of new/old over the parts."""
    spread: float
    """How far from 1 old against old lies in any part."""
    rounds: int

    @property
    def verdict(self) -> str:
        """Within the spread, or by how much not; where the spread is above the limit, only what is beyond it is decided."""
        change = self.ratio - 1
        if change > self.spread:
            return f"slower by {100 * change:.1f} %"
        if change < -self.spread:
            return f"faster by {-100 * change:.1f} %"
        if self.spread <= AT_MOST:
            return "within spread"
        return f"undecided: the spread is above {100 * AT_MOST:.0f} %, measure on a quieter machine"


def lower_quartile(values: Sequence[float]) -> float:
    """The value that a quarter is at or below."""
    return sorted(values)[(len(values) - 1) // 4]


def parts_of(rounds: int) -> list[slice]:
    """The rounds, cut into PARTS of nearly equal lengths of at least LEAST."""
    count = max(1, min(PARTS, rounds // LEAST))
    borders = [rounds * part // count for part in range(count + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(borders)]


def summary(case: str, old: Sequence[float], new: Sequence[float], again: Sequence[float]) -> Speed:
    """From the step's seconds, by round."""
    by_part = [[lower_quartile(times[part]) for times in (old, new, again)] for part in parts_of(len(old))]
    spread = max(abs(c / a - 1) for a, _, c in by_part)
    milliseconds = (1e3 * statistics.median(figures[side] for figures in by_part) for side in (0, 1))
    ratio = statistics.median(b / a for a, b, _ in by_part)
    return Speed(case, *milliseconds, ratio, spread, len(old))


class Runner:
    """One `cktrain train`, stopped but in its turns."""

    def __init__(self, side: Side, config: Path, blocks: Blocks, number: int, isa: str) -> None:
        self.run = side.work / f"runs/speed-{number}"
        shutil.rmtree(self.run, ignore_errors=True)
        blocks = merged(merged(blocks, ENDLESS), {"run": {"dir": f"runs/speed-{number}"}})
        words = ["train", str(config), *(w for key in flattened(blocks) for w in ("--set", key))]
        self.log = (side.work / f"speed-{number}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cktrain.launch.cli", *words],
            cwd=side.work,
            env=side.environment(isa),
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.bytes_of_a_line = 0
        self._wait_for(2)
        self.pause()

    def turn(self, steps: int) -> float:
        """Seconds per step."""
        os.kill(self.process.pid, signal.SIGCONT)
        done = self._lines()
        began = self._wait_for(done + 1)
        ended = self._wait_for(done + 1 + steps)
        self.pause()
        return (ended - began) / steps

    def pause(self) -> None:
        """Stop until the next turn."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def close(self) -> None:
        """End it; it writes no checkpoint."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.run, ignore_errors=True)

    def _lines(self) -> int:
        try:
            return (self.run / "metrics.jsonl").read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def _wait_for(self, lines: int) -> float:
        """When the file has so many lines."""
        until = time.perf_counter() + WAIT_S
        while self._lines() < lines:
            time.sleep(0.002)
            if self.process.poll() is not None or time.perf_counter() > until:
                end = Path(self.log.name).read_text().splitlines()[-3:]
                raise CommandFailed(f"{' '.join(end)} ({self.log.name})")
        return time.perf_counter()


def measure(sides: tuple[Side, Side], case: SpeedCase, rounds: int, isa: str) -> Speed:
    """All turns of one case. Raises CommandFailed."""
    old, new = sides
    times: list[list[float]] = [[], [], []]
    for part in parts_of(rounds):
        runners: list[Runner] = []
        try:
            for number, side in enumerate((old, new, old)):
                runners.append(Runner(side, old.root / case.file, case.blocks, number, isa))
            for turn in range(part.start, part.stop):
                for place in range(3):
                    number = (turn + place) % 3
                    times[number].append(runners[number].turn(case.steps))
        finally:
            for runner in runners:
                runner.close()
    return summary(case.name, *times)
