"""Ranks as plain processes of this machine, without a launcher that would stop them all when one dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine_load
from forked import Nursery
from hosts import Lab

FOLDER = Path(__file__).resolve().parent

KILLED_S = 2.0
"""Within which all others must see that a rank was killed."""


PATIENCE = 4 if machine_load.IN_GUEST else 1
"""What only ends a test that hangs waits so many times longer in a guest, which cannot see that its host is busy."""


MEETING_S = 60.0
"""Ranks in a guest have so long to meet, whatever deadline is tested: for that they need their processors for a while."""


def slack_s() -> float:
    """What the interpreter's end adds to a promise: 1.5 s, and more where processes wait for a core."""
    return 1.5 * machine_load.stretch()


@dataclass
class Ended:
    """How a rank ended."""

    status: int
    output: str
    at: float
    """machine_load.now() when it was seen to have ended."""


@dataclass
class Ranks:
    """Started ranks of tests/comm/<program>; to be used as a context."""

    processes: list[Any]
    """Each is a subprocess.Popen, or as one."""
    began: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout:
                process.stdout.close()

    def wait_for(self, pattern: str, rank: int, limit_s: float = 30) -> str:
        """Read the rank's output up to a line in which `pattern`, a regular expression, is found, and return that line."""
        deadline = time.monotonic() + PATIENCE * limit_s
        stream = self.processes[rank].stdout
        assert stream is not None
        seen = []
        while time.monotonic() < deadline:
            line = stream.readline()
            seen.append(line)
            if re.search(pattern, line):
                return line
            if not line:
                break
        raise AssertionError(f"rank {rank} never said {pattern!r}:\n{''.join(seen)}")

    def signal(self, rank: int, number: int) -> float:
        """Send a signal to a rank; when that was, by machine_load.now()."""
        self.processes[rank].send_signal(number)
        return machine_load.now()

    def until_ended(self, *ranks: int, limit_s: float) -> float:
        """Wait for the end of some ranks, or until the limit; when that was, by machine_load.now()."""
        deadline = machine_load.now() + limit_s
        while machine_load.now() < deadline and any(self.processes[r].poll() is None for r in ranks):
            machine_load.nap()
        return machine_load.now()

    def ends(self, limit_s: float = 60) -> list[Ended]:
        """Wait for all ranks; a rank that does not end fails the test. Their children may live on."""
        limit_s *= PATIENCE
        deadline = time.monotonic() + limit_s
        at: dict[int, float] = {}
        while len(at) < len(self.processes) and time.monotonic() < deadline:
            for rank, process in enumerate(self.processes):
                if rank not in at and process.poll() is not None:
                    at[rank] = machine_load.now()
            machine_load.nap()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        outputs = [process.communicate()[0] for process in self.processes]
        assert len(at) == len(self.processes), (
            f"hung for {limit_s:g} s; output of the ranks:\n" + "\n---\n".join(outputs)
        )
        return [
            Ended(p.returncode, out, at[r])
            for r, (p, out) in enumerate(zip(self.processes, outputs, strict=True))
        ]


FORKED = {
    *(
        "compare_algorithms",
        "cross_groups",
        "cross_legally",
        "differ",
        "differ_unheard",
        "fork_and_repeat",
        "late_for",
        "repeat",
    ),
    *("run_conformance", "share_a_core", "stress", "wait_for_one"),
}
"""What rank_program.py does in ranks that are forked. What is about a process's beginning, end or memory is not here: it
runs in processes of its own, except beside an RDMA device, where guests emulate the processor."""

_jobs = 0
_nurseries: dict[bool, Nursery] = {}


def nursery(*, rdma: bool) -> Nursery:
    """The process that ranks are forked from, made when it is first asked for.

    In a guest, where each import takes its time, it is a fork of this process: the first test asks for it.
    """
    if rdma not in _nurseries:
        _nurseries[rdma] = Nursery(rdma=rdma, here=machine_load.IN_GUEST)
    return _nurseries[rdma]


def close_nurseries() -> None:
    """End the processes that ranks were forked from."""
    while _nurseries:
        _nurseries.popitem()[1].close()


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    ranks: int,
    program: str,
    *arguments: str,
    only: Sequence[int] | None = None,
    each: Sequence[Mapping[str, str]] | None = None,
    lab: Lab | None = None,
    **environment: str,
) -> Ranks:
    """Start `ranks` processes of a program (or `only` some of them), as a launcher of torchrun's kind would.

    `each` has variables of single ranks, beyond the `environment` of all. With a `lab` each runs on a host of it.
    """
    global _jobs
    _jobs += 1
    port = free_port()
    processes: list[Any] = []
    for rank in range(ranks) if only is None else only:
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
        }
        place |= {"CKTRAIN_JOB": f"test-{os.getpid()}-{_jobs}", "PYTHONUNBUFFERED": "1"}
        place["CKTRAIN_RENDEZVOUS"] = f"127.0.0.1:{port}"
        if machine_load.IN_GUEST:
            place["CKTRAIN_TEST_MEETING"] = str(MEETING_S)
        if lab is not None:
            place |= {
                "LOCAL_RANK": "0",
                "LOCAL_WORLD_SIZE": "1",
                "CKTRAIN_RENDEZVOUS": f"{lab.address(0)}:{port}",
            }
        variables = {**os.environ, **place, **environment, **(each[rank] if each else {})}
        rdma = variables.get("CKTRAIN_TEST_TRANSPORT") == "rdma" or "CKTRAIN_VERBS" in variables
        alike = program == "rank_program.py" and lab is None and "PYTHONPATH" not in environment
        if alike and (rdma or arguments[0] in FORKED):
            processes.append(nursery(rdma=rdma).start([program, *arguments], variables))
            continue
        processes.append(
            subprocess.Popen(
                [*(lab.inside(rank) if lab else []), sys.executable, str(FOLDER / program), *arguments],
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return Ranks(processes)


def but_for_stalls(output: str) -> str:
    """What a rank printed; in a guest without warnings of a missing heartbeat, which are true of a host that stops it."""
    if not machine_load.IN_GUEST:
        return output
    return "".join(line for line in output.splitlines(keepends=True) if "(no heartbeat for" not in line)


def assert_together(ends: Sequence[Ended]) -> None:
    """What ended one rank ended all of them: nobody waited for a deadline."""
    took = max(end.at for end in ends) - min(end.at for end in ends)
    assert took < KILLED_S + slack_s(), f"{took:.1f} s between the first end and the last"


def assert_lost(ends: Sequence[Ended], lost: int, since: float) -> None:
    """All other ranks named it in time and ended with 1."""
    for rank, end in enumerate(ends):
        if rank != lost:
            assert end.status == 1, end.output
            assert f": lost rank {lost} on {socket.gethostname()} (" in end.output, end.output
            assert end.at - since < KILLED_S + slack_s(), f"rank {rank} took {end.at - since:.1f} s"
