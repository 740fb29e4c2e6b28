"""The gate on performance: what is slower than in the last release, on this machine?

    ./run bench-gate [COMMIT] [--only ops step decode] [--op WORD] [--rounds 33] [--threads N] [--page FILE]

COMMIT is what to compare the checkout with: the last tag, where there is one. Both are built, and every op, the training
step and decoding are timed in turns, old beside new beside old again (op_times.py, step_time.py). What is slower by more
than old differs from old is measured a second time, and named when it is slower again: of a hundred cases some are by
chance. Exit status: 0 nothing is slower, 1 something is, 2 the command cannot be done as it is given.

It means something only when nothing else runs. --page writes a dated page for docs/benchmarks/, or adds a section to it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import step_time
from comparison import kernel_sets, prepare_data
from op_times import measure_decode, measure_ops
from page import add_to_page, cpu_name, speed_line, speed_table
from sides import ROOT, CommandFailed, Side, alone, prepare
from step_time import Speed

PARTS = ("ops", "step", "decode")
STEPS = ("demo", "small")
"""Of step_time.CASES."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run bench-gate", description="Names what is slower than in the last release."
    )
    parser.add_argument("commit", nargs="?", help="to compare with; default: the last tag")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; default: all")
    parser.add_argument("--op", default="", metavar="WORD", help="only ops whose name has this text")
    parser.add_argument("--rounds", type=int, default=33, help="turns of each side for an op; default: 33")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--page", type=Path, help="also write the result there, as dated Markdown")
    return parser.parse_args(words)


def last_tag(root: Path = ROOT) -> str | None:
    """The newest tag before what the checkout has; None: there is none."""
    changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    is_tagged = _git(root, "describe", "--tags", "--exact-match", "HEAD") is not None
    return _git(root, "describe", "--tags", "--abbrev=0", "HEAD" if changed or not is_tagged else "HEAD^")


def _git(root: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def is_slower(speed: Speed) -> bool:
    """By more than old differs from old."""
    return speed.ratio - 1 > speed.spread


def slower_twice(first: list[Speed], again: Callable[[Speed], Speed]) -> list[tuple[Speed, Speed]]:
    """What is slower, with its second measurement, in which it is slower, too."""
    both = [(speed, again(speed)) for speed in first if is_slower(speed)]
    return [pair for pair in both if is_slower(pair[1])]


class Gate:
    """The measurements of both sides."""

    def __init__(self, sides: tuple[Side, Side], options: argparse.Namespace) -> None:
        self.sides, self.options = sides, options
        self.isa = [name for name in kernel_sets(sides[0]) if name != "onednn"][-1]
        self.lacking: list[str] = []
        """What could not be compared, and why."""
        self._again: dict[str, Callable[[], Speed]] = {}

    def all(self) -> Iterator[Speed]:
        """One case after the other."""
        rounds = self.options.rounds
        steps, tokens = 3 * rounds, max(3, rounds // 4)  # by how long a turn is
        if "ops" in self.options.only:
            for speed in measure_ops(self.sides, self.options.threads, rounds, self._wanted):
                self._again[speed.case] = partial(self._op, speed.case)
                yield speed
        if "step" in self.options.only:
            list(prepare_data(self.sides))
            for name in STEPS:
                yield self._noted(
                    partial(step_time.measure, self.sides, step_time.CASES[name], steps, self.isa)
                )
        if "decode" in self.options.only:
            for threads in sorted({1, self.options.threads}):
                try:
                    yield self._noted(partial(measure_decode, self.sides, threads, tokens, self.isa))
                except CommandFailed as error:
                    self.lacking.append(f"decoding was not compared: {error}")

    def again(self, speed: Speed) -> Speed:
        """The same case once more."""
        return self._again[speed.case]()

    def _noted(self, measure: Callable[[], Speed]) -> Speed:
        speed = measure()
        self._again[speed.case] = measure
        return speed

    def _wanted(self, name: str) -> bool:
        return self.options.op in name

    def _op(self, name: str) -> Speed:
        (speed,) = measure_ops(self.sides, self.options.threads, self.options.rounds, lambda n: n == name)
        return speed


def main() -> int:
    """The exit status."""
    options = arguments()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that processes are ended, too
    commit = options.commit or last_tag()
    if commit is None:
        print(
            "[bench-gate] no tag stands before HEAD, so there is no release to compare with. Give a commit: "
            "./run bench-gate COMMIT.",
            file=sys.stderr,
        )
        return 2
    began = time.monotonic()
    with alone():
        sides = prepare("old", commit), prepare("new", None)
        gate = Gate(sides, options)
        print(f"{sides[0].commit} against {sides[1].commit}: {cpu_name()}, {gate.isa}", flush=True)
        found = []
        for speed in gate.all():
            found.append(speed)
            print(speed_line(speed), flush=True)
        slower = slower_twice(found, gate.again)
    for line in gate.lacking:
        print(line)
    named = [
        f"{first.case} is slower: {100 * (first.ratio - 1):.1f} and, measured again, {100 * (second.ratio - 1):.1f} %, "
        f"where old differs from old by {100 * max(first.spread, second.spread):.1f} %"
        for first, second in slower
    ]
    print(*named, sep="\n", end="\n" if named else "")
    print(f"{len(found)} cases, {len(slower)} slower, {time.monotonic() - began:.0f} s")
    if options.page:
        add_to_page(options.page, as_page(sides, gate, found, named))
    return 1 if slower else 0


def as_page(sides: tuple[Side, Side], gate: Gate, found: list[Speed], named: list[str]) -> str:
    """Markdown: machine and commits, what is slower, all cases."""
    day = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    lines = [
        f"# The speed of {sides[1].commit} beside {sides[0].commit}",
        "",
        f"{day}, {cpu_name()}, {gate.isa}, {gate.options.threads} threads: `./run bench-gate`.",
        "",
        *[f"- {line}" for line in named or ["nothing is slower by more than old differs from old"]],
        *[f"- {line}" for line in gate.lacking],
        "",
        *speed_table("case", found),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
