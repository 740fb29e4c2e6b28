"""`bench collectives`: sizes, what it prints, and the definitions of its rates."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cktrain.bench.collectives import Contender, as_json, as_table, parse_sizes, summarize
from cktrain.comm.solo_group import SoloGroup


def test_sizes():
    assert parse_sizes("4k,1m, 64MB,100,2g") == [4096, 1 << 20, 64 << 20, 100, 2 << 30]
    for text in ("4k,many", "0", "-4k", "²", "9" * 30, "999999999999g", ""):
        with pytest.raises(ValueError, match="is not a size"):
            parse_sizes(text)


@pytest.mark.parametrize("op, factor", [("all_reduce", 1.5), ("all_gather", 0.75), ("broadcast", 1.0)])
def test_rates_are_nccl_tests(op, factor):
    group = SoloGroup()
    group.size = 4
    group._all_reduce = lambda array, op: None  # type: ignore[method-assign]
    group._finish = lambda work, async_: None  # type: ignore[method-assign, assignment]
    row = summarize(group, op, 4_000_000, Contender("shm", "arena", lambda: None), np.full(9, 0.001))
    assert row.p50_us == row.p99_us == pytest.approx(1000)
    assert row.algbw_gbs == pytest.approx(4.0)
    assert row.busbw_gbs == pytest.approx(4.0 * factor)
    assert list(json.loads(as_json([row]))[0]) == [
        *("op", "transport", "ranks", "bytes", "p50_us", "p99_us", "algbw_gbs", "busbw_gbs", "buffers")
    ]
    assert "4,000,000" in as_table([row])


@pytest.mark.mpi
def test_under_mpirun(mpirun, tmp_path):
    import subprocess
    import sys

    command = [
        *mpirun(2),
        sys.executable,
        "-m",
        "cktrain.launch.cli",
        "bench",
        "collectives",
        "--sizes",
        "4k,256k",
    ]
    command += ["--op", "all_reduce", "--op", "barrier", "--json", "--no-rivals"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    assert {(r["op"], r["bytes"], r["buffers"]) for r in rows if r["op"] == "all_reduce"} == {
        ("all_reduce", n, b) for n in (4096, 262_144) for b in ("arena", "plain")
    }
    assert all(r["transport"] == "shm" and r["ranks"] == 2 and 0 < r["p50_us"] <= r["p99_us"] for r in rows)
