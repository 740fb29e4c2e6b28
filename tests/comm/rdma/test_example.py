"""examples/rdma.py on a real device."""

from __future__ import annotations

import job
import pytest

pytestmark = pytest.mark.rdma

WORDS = ("rdma_write", "rdma_read", "rdma_allreduce", "rdma_broadcast", "rdma_barrier")
BYTES = 2 * 2 * 4096 + 2 * (1 << 20)
"""What two ranks write and read, and what half of an array is for each in an all-reduce, there and back, at least."""


def test_call_by_call(device: str) -> None:
    """The device's own counters say that the bytes went over RDMA."""
    from ends import counters

    before = counters(device)["sent_pkts"]
    with job.start(2, "rank_program.py", "call_by_call", CKTRAIN_TEST_TRANSPORT="rdma") as ranks:
        ends = ranks.ends(150)
    for rank, end in enumerate(ends):
        assert end.status == 0, end.output
        told = [line.partition(":") for line in job.but_for_stalls(end.output).splitlines()]
        assert [word for word, _, _ in told] == list(WORDS), end.output
        assert (
            f"rank {1 - rank} wrote 4,096 bytes of {101 - rank} into the memory of rank {rank}" in told[0][2]
        )
        assert (
            f"rank {rank} read 4,096 bytes of {100 + rank} from the memory of rank {1 - rank}" in told[1][2]
        )
        assert "262,144 numbers, each now 1 on all 2 ranks" in told[2][2]
    assert counters(device)["sent_pkts"] - before > BYTES // 4096
