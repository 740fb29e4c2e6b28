"""Measures all-reduce of two ranks on this machine beside Open MPI, gloo and what the hardware allows, and writes the table.

    python docs/benchmarks/collectives.py > docs/benchmarks/collectives_CPU_DATE.md

It starts `cktrain bench collectives` under mpirun, once per transport; each run measures all its contenders in turns, so
every figure is a ratio within one run. Nothing else should run on the machine. Needs mpi4py; gloo needs PyTorch.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, object]
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def printed(command: list[str]) -> Any:
    """The JSON that the command prints."""
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith(("[{", "{"))))


def bench(transport: str, sizes: str, *options: str) -> list[Row]:
    """The rows of all-reduce."""
    command = ["mpirun", "-n", "2", "cktrain", "bench", "collectives", "--transport", transport]
    rows: list[Row] = printed([*command, "--op", "all_reduce", "--sizes", sizes, "--json", *options])
    return rows


def micros(rows: list[Row], nbytes: int, transport: str, buffers: str | None = None) -> float:
    """The median time of one contender."""
    found = [
        row["p50_us"]
        for row in rows
        if (row["bytes"], row["transport"]) == (nbytes, transport) and buffers in (None, row["buffers"])
    ]
    return float(found[0]) if found else float("nan")  # type: ignore[arg-type]


def processor() -> str:
    """The CPU's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure and print the table."""
    shm, tcp = bench("shm", "4k,1m,64m"), bench("tcp", "64m")
    several = bench("tcp", "64m", "--tcp-sockets", "2")
    overlap = printed(["cktrain", "bench", "overlap", "--json"])
    k, m, large = 4 << 10, 1 << 20, 64 << 20
    lines: list[tuple[str, float, str, float, str, bool]] = []

    def line(
        what: str, mine: float, rival: str, theirs: float, wanted: str, held: Callable[[float], bool]
    ) -> None:
        lines.append((what, mine, rival, theirs, wanted, held(theirs / mine)))

    arena, plain = micros(shm, large, "shm", "arena"), micros(shm, large, "shm", "plain")
    line("shm 64 MB, arena", arena, "Open MPI", micros(shm, large, "mpi4py"), "at least 3", lambda x: x >= 3)
    line("shm 64 MB, arena", arena, "gloo", micros(shm, large, "gloo"), "at least 3.5", lambda x: x >= 3.5)
    line(
        "shm 64 MB, arena",
        arena,
        "memory traffic",
        micros(shm, large, "traffic"),
        "at least 1/1.5",
        lambda x: x >= 1 / 1.5,
    )
    line(
        "shm 64 MB, ordinary",
        plain,
        "Open MPI",
        micros(shm, large, "mpi4py"),
        "at least 1.5",
        lambda x: x >= 1.5,
    )
    line(
        "shm 4 KB",
        micros(shm, k, "shm", "plain"),
        "Open MPI",
        micros(shm, k, "mpi4py"),
        "at least 1",
        lambda x: x >= 1,
    )
    line(
        "shm 1 MB",
        micros(shm, m, "shm", "plain"),
        "Open MPI",
        micros(shm, m, "mpi4py"),
        "at least 2",
        lambda x: x >= 2,
    )
    for name, rows in (("tcp 64 MB, 1 socket", tcp), ("tcp 64 MB, 2 sockets", several)):
        mine = micros(rows, large, "tcp", "arena")
        line(name, mine, "raw sockets", micros(rows, large, "sockets"), "at least 0.8", lambda x: x >= 0.8)
        line(name, mine, "gloo", micros(rows, large, "gloo"), "at least 1", lambda x: x >= 1)

    print(f"# All-reduce of two ranks, {processor()}, {datetime.date.today().isoformat()}\n")
    print(f"Linux {platform.release()}, {os.cpu_count()} cores, fp32, median of the calls.")
    print("Measured by docs/benchmarks/collectives.py.\n")
    print("| what | us | beside | us | theirs / ours | wanted | |\n|---|---|---|---|---|---|---|")
    for what, mine, rival, theirs, wanted, held in lines:
        verdict = "reached" if held else "NOT reached"
        print(
            f"| {what} | {mine:,.1f} | {rival} | {theirs:,.1f} | {theirs / mine:.2f} | {wanted} | {verdict} |"
        )

    own, bound = 1e3 * float(overlap["exposed_s"]), 1e3 * float(overlap["bound_s"])  # type: ignore[arg-type]
    sent, hidden = 1e3 * float(overlap["communication_s"]), 1e3 * float(overlap["backward_s"])  # type: ignore[arg-type]
    verdict = "reached" if own <= bound else "NOT reached"
    print("\nOverlap on a network that is only a clock (`cktrain bench overlap`):")
    print(
        f"backward {hidden:.0f} ms, communication {sent:.0f} ms, exposed {own:.1f} ms, "
        f"at most {bound:.1f} wanted: {verdict}."
    )


if __name__ == "__main__":
    main()
