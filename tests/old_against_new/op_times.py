"""Both sides' ops and decoding in turns, beside old against old in the same turns.

Three processes hold an op's arrays: old, new, and old again; the one whose turn it is calls it for some milliseconds. Who
begins rotates from round to round. A decoding turn is a `cktrain bench decode` of its own. What of a case's seconds is made
is `step_time.summary`'s: the median of new/old, against the spread of old again/old.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from case_table import merged
from sides import ROOT, CommandFailed, Side
from step_time import Speed, summary

TURN_S = 0.02
"""Seconds of a turn at least."""
DECODED = {"model": {"num_hidden_layers": 4, "vocab_size": 8192}}
"""The reference model, smaller, and still larger than most caches."""


class OpProcess:
    """One side's op_worker.py."""

    def __init__(self, side: Side, number: int, threads: int, isa: str = "") -> None:
        self.side = side
        self.log = side.work / f"ops-{number}.log"
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("op_worker.py")), str(threads)],
            cwd=side.work,
            env=side.environment(isa),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def ask(self, line: str) -> Any:
        """The answer. Raises CommandFailed with the end of what the process said when it is gone."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            self.process.wait()
            end = " ".join(self.log.read_text().splitlines()[-2:])
            raise CommandFailed(f"{self.side.name}: {line}: {end} ({self.log})") from None

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def in_turns(rounds: int, turns: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Each one's seconds, round by round; who begins rotates."""
    times: list[list[float]] = [[] for _ in turns]
    for turn in range(rounds):
        for place in range(len(turns)):
            number = (turn + place) % len(turns)
            times[number].append(turns[number]())
    return times


def measure_ops(
    sides: tuple[Side, Side], threads: int, rounds: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Speed]:
    """Every op that both sides have and that is `wanted`, by its name. Raises CommandFailed."""
    old, new = sides
    processes: list[OpProcess] = []
    try:
        for number, side in enumerate((old, new, old)):
            processes.append(OpProcess(side, number, threads))
        there = set(processes[0].ask("list"))
        for name in processes[1].ask("list"):
            if name not in there or not wanted(name):
                continue
            for process in processes:
                assert process.ask(f"take {name}"), name
            calls = max(1, round(TURN_S / max(processes[1].ask("time 1"), 1e-7)))
            turns = [partial(process.ask, f"time {calls}") for process in processes]
            yield summary(name, *in_turns(rounds, turns))
    finally:
        for process in processes:
            process.close()


def measure_decode(sides: tuple[Side, Side], threads: int, rounds: int, isa: str) -> Speed:
    """Seconds of a token after the prompt. Raises CommandFailed, too where a side cannot decode."""
    settings = merged(yaml.safe_load((ROOT / "docs/benchmarks/reference.yaml").read_text()), DECODED)
    for side in sides:
        (side.work / "decoded.yaml").write_text(yaml.safe_dump(settings))
    words = ["bench", "decode", "decoded.yaml", "--threads", str(threads), "--prompt", "64", "--tokens", "48"]

    def turn(side: Side) -> float:
        return 1.0 / json.loads(side.cktrain(*words, "--json", isa=isa))["decode_tps"]

    old, new = sides
    turns = [lambda s=side: turn(s) for side in (old, new, old)]
    return summary(f"decode, {threads} threads", *in_turns(rounds, turns))
