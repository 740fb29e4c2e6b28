"""Old against new on this machine: is a change that should alter no number really none?

    python tests/old_against_new START [HEAD] [--only losses|exports|memory|speed …] [--quick] [--case WORD]
                                       [--rounds 99] [--speed demo small] [--page FILE]

START is a commit; HEAD another, or by default the checkout as it stands. Each is built with its own compiled modules
(once per commit, in build/old_against_new/), then both do the same runs (case_table.py), and what they leave is compared:

    losses    metrics.jsonl and the checkpoint's tensors after 20 steps, bit by bit
    exports   exported folders, imported configurations, generated text
    memory    the bytes that a plan asks for, and those that a run's arenas have
    speed     the step's time in turns, against the spread of old beside old

Results depend on the machine's caches, so both sides run here and now, and no results are stored. Exit status: 0 all
the same, 1 a difference, a failed run or more bytes. A slower step is reported and left to who reads it: the speed part
means something only when nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import step_time
from case_table import PLANS, QUICK_PLANS, cases
from comparison import (
    Sides,
    compare_case,
    compare_exports,
    compare_plan,
    compare_real_arenas,
    kernel_sets,
    prepare_data,
)
from findings import Finding
from page import add_to_page, as_page, as_table
from sides import alone, prepare

PARTS = ("losses", "exports", "memory", "speed")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="old_against_new", description="Compares two commits on this machine."
    )
    parser.add_argument("start", help="the commit to compare with")
    parser.add_argument("head", nargs="?", help="default: the checkout as it stands")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer cases, and of the speed the demo alone")
    parser.add_argument(
        "--case", default="", metavar="WORD", help="only cases whose name has this text; not of the speed"
    )
    parser.add_argument("--rounds", type=int, default=99, help="turns of each side; default: 99")
    parser.add_argument(
        "--speed", nargs="+", choices=step_time.CASES, help="steps to time; default: demo small"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="cases at a time")
    parser.add_argument(
        "--page",
        type=Path,
        help="also write the result there, as dated Markdown; a page that is there is added to",
    )
    return parser.parse_args()


def main() -> int:
    """The exit status."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that runs are ended, too
    with alone():
        return compare(options)


def compare(options: argparse.Namespace) -> int:
    """Both sides' runs, the table, and 1 when anything is worse."""
    sides: Sides = prepare("old", options.start), prepare("new", options.head)
    began = time.monotonic()
    sets = kernel_sets(sides[0])
    best = [name for name in sets if name != "onednn"][-1]
    table = [case for case in cases(sides[0].root / "examples", sets) if options.case in case.name]
    if options.quick:
        table = [case for case in table if case.quick]
    if not sides[0].has("mpirun"):
        print("left out: runs under mpirun, which is not installed", flush=True)
        table = [case for case in table if case.launcher != "mpirun"]
    print(f"{sides[0].commit} against {sides[1].commit}; kernel sets: {', '.join(sets)}", flush=True)
    found: list[Finding] = []
    found += told(prepare_data(sides))
    exported = [case for case in table if case.exported]
    if "losses" in options.only or "exports" in options.only:
        runs = table if "losses" in options.only else exported
        found += spread(options.jobs, [lambda c=case: compare_case(sides, c, best) for case in runs])
    if "exports" in options.only:
        found += spread(options.jobs, [lambda c=case: compare_exports(sides, c, best) for case in exported])
    if "memory" in options.only:
        plans = [name for name in (QUICK_PLANS if options.quick else PLANS) if options.case in name]
        found += spread(options.jobs, [lambda n=name: compare_plan(sides, n) for name in plans])
        found += spread(
            options.jobs, [lambda c=case: compare_real_arenas(sides, c, best) for case in exported]
        )
    times: list[step_time.Speed] = []
    if "speed" in options.only:
        for name in options.speed or (["demo"] if options.quick else ["demo", "small"]):
            times.append(step_time.measure(sides, step_time.CASES[name], options.rounds, best))
            print(f"{times[-1].case}: {times[-1].verdict}", flush=True)
    seconds = time.monotonic() - began
    print(as_table(found, times))
    worse = [finding for finding in found if finding.is_worse]
    print(f"{len(found)} comparisons, {len(worse)} worse, {seconds:.0f} s")
    if options.page:
        add_to_page(options.page, as_page(sides, found, times, seconds))
    return 1 if worse else 0


def spread(jobs: int, work: list[Callable[[], list[Finding]]]) -> list[Finding]:
    """Several comparisons at a time; their findings in the order of the work."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return [finding for part in pool.map(lambda do: told(do()), work) for finding in part]
        except BaseException:  # Ctrl-C: what has not begun does not begin
            pool.shutdown(cancel_futures=True)
            raise


def told(findings: Iterable[Finding]) -> list[Finding]:
    """The same findings; what is worse is printed at once."""
    found = list(findings)
    for finding in found:
        if finding.is_worse:
            print(f"{finding.verdict}: {finding.case}: {finding.what}: {finding.detail}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
