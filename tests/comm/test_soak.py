"""Random operations on several groups, many in flight: for seconds here, for as long as one likes by a variable.

CKTRAIN_TEST_SOAK_S=1800 runs each case for half an hour; the seed stands in the test's name.
"""

from __future__ import annotations

import os
import re

import job
import pytest

SECONDS = float(os.environ.get("CKTRAIN_TEST_SOAK_S", "3"))


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize(
    "transport, ranks, nodes",
    [("shm", 2, ""), ("shm", 4, ""), ("tcp", 2, ""), ("tcp", 4, ""), ("auto", 4, "2,2")],
)
def test_soak(transport, ranks, nodes, seed):
    how = {"CKTRAIN_TEST_TRANSPORT": transport, "CKTRAIN_TEST_NODES": nodes}
    with job.start(ranks, "rank_program.py", "run_soak", str(SECONDS), str(seed), **how) as started:
        ends = started.ends(SECONDS + 60)
    assert [end.status for end in ends] == [0] * ranks, "\n".join(end.output for end in ends)
    match = re.search(r"operations: (\d+)", ends[0].output)
    assert match is not None and int(match[1]) >= 100, ends[0].output
    print(f"soak: {match[1]} operations of {ranks} ranks over {transport} {nodes}")
