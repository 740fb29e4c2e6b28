"""ShmGroup: the conformance checks, many operations back to back, what it costs, and the meeting of the ranks."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time

import job
import numpy as np
import pytest

from cktrain.comm import _engine, node
from cktrain.comm.algorithms import even_parts, plan


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_conformance(ranks):
    with job.start(ranks, "rank_program.py", "run_conformance") as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * ranks, ends
    assert "checks run: 20" in ends[0].output


@pytest.mark.parametrize("ranks, steps", [(2, 2000), (5, 400)])
def test_many_operations_back_to_back(ranks, steps):
    """Slots, stages and rings are used again and again; five ranks outnumber the cores of a small machine."""
    with job.start(ranks, "rank_program.py", "stress", str(steps), "1") as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * ranks, ends
    assert f"steps: {steps}" in ends[0].output


@pytest.mark.parametrize("transport, nodes", [("shm", ""), ("tcp", ""), ("auto", "4,4")])
def test_memory_beyond_the_arrays(transport, nodes):
    """At 8 ranks, with every way taken: what a rank's groups take beyond the user's arrays."""
    limit = 32 << 20
    with job.start(
        8, "rank_program.py", "memory_of_a_group", CKTRAIN_TEST_TRANSPORT=transport, CKTRAIN_TEST_NODES=nodes
    ) as started:
        ends = started.ends(150)
    for end in ends:
        match = re.search(r"bytes: (-?\d+)", end.output)
        assert match is not None, end.output
        assert int(match[1]) < limit, end.output


def test_memory_beyond_the_arrays_at_64_ranks():
    """By calculation: 64 on one node, 64 on a network, and 8 nodes of 8 with gradients in buckets of 25 MiB."""
    limit, stage, ring, bucket = 32 << 20, 512 << 10, 256 << 10, 25 << 20
    neighbours = 8  # of a pipeline or a tensor group; a rank that sends to all 63 others pays for all

    def in_memory(ranks: int) -> float:
        lanes = 2 * _engine.Lane.bytes_needed(ranks, stage) / ranks
        return lanes + neighbours * _engine.Stream.bytes_needed(ring)

    def on_wires(ranks: int) -> int:
        """Two lanes' scratch."""
        parts = even_parts(bucket // 4, ranks, 4)
        largest = max(
            plan("all_reduce", "direct", 0, ranks, bucket // 4, None, -1, 4)[2],
            plan("all_reduce", "doubling", 0, ranks, bucket // 4, None, -1, 4)[2],
            plan("reduce_scatter", "", 0, ranks, bucket // 4, parts, -1, 4)[2],
        )
        return 2 * 4 * largest

    assert in_memory(64) < limit
    assert on_wires(64) < limit
    pieces = (
        3 * bucket // 8
    )  # two operations in flight and a synchronous one, each a node's share of the sums
    assert 2 * in_memory(8) + on_wires(8) + pieces < limit


# ------------------------------------------------------------------------------------------------- the meeting


def hello(**changes: object) -> dict[str, object]:
    return {
        "protocol": node.PROTOCOL,
        "local_rank": 1,
        "local_size": 2,
        "rank": 1,
        "pid": os.getpid(),
        "pid_namespace": "",
        "host": "here",
        "cpus": [0],
        "reasons": {},
    } | changes


def knock(name: str, data: bytes, answer: bool = True) -> bytes:
    """Say something at the meeting place of a job; what it answers."""
    deadline = time.monotonic() + 60  # it only ends what hangs
    while True:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            door.connect(f"\0cktrain/{os.getuid()}/{name}")
            break
        except ConnectionRefusedError:
            door.close()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    with door:
        door.sendall(data)
        door.shutdown(socket.SHUT_WR)
        door.settimeout(8)
        try:
            return door.recv(4096) if answer else b""
        except ConnectionResetError:
            return b""


def message(content: object) -> bytes:
    data = json.dumps(content).encode()
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    "data, words",
    [
        (message(hello(protocol=99)), b"protocol 99"),
        (message(hello(local_size=3)), b"you count 3"),
        (message(hello(local_rank=0)), b"already here"),
        (message(hello(local_rank=7)), b"not below 2"),
        (message(hello(local_rank="one")), b"refused"),
        (message(hello(reasons=["tcp"])), b"reasons of an unknown form"),
        (message([1, 2]), b"not a message"),
        (message({}), b"refused"),
        (struct.pack("<I", 1 << 31), b"the limit is"),
        (b"GET / HTTP/1.0\r\n\r\n", b"the limit is"),
        (b"\0", b"refused"),
        (b"", b"refused"),
    ],
)
def test_strangers_are_refused_and_the_meeting_goes_on(data, words):
    name = f"meeting-{os.getpid()}"
    with job.start(2, "rank_program.py", "exit_with", "0", only=[0], CKTRAIN_JOB=name) as first:
        assert words in knock(name, data)
        with job.start(2, "rank_program.py", "exit_with", "0", only=[1], CKTRAIN_JOB=name) as second:
            assert [end.status for end in (*first.ends(20), *second.ends(20))] == [0, 0]


def test_rank_that_is_refused_says_why():
    name = f"meeting-{os.getpid()}"
    with job.start(
        2, "rank_program.py", "exit_with", "0", only=[0], CKTRAIN_JOB=name, CKTRAIN_TEST_TIMEOUT="5"
    ) as first:
        with job.start(3, "rank_program.py", "exit_with", "0", only=[1], CKTRAIN_JOB=name) as second:
            refused = second.ends(20)[0]
        assert refused.status == 1
        assert "you count 3 ranks on this node, rank 0 counts 2" in refused.output
        first.ends(20)


# ---------------------------------------------------------------------------------------------------- pieces


@pytest.mark.parametrize("offset", [0, 4096])
def test_mapping_is_aligned_and_a_buffer(offset):
    fd = os.memfd_create("test")
    os.ftruncate(fd, 3 << 20)
    mapping = _engine.Mapping(fd, (3 << 20) - offset)
    assert mapping.address % (2 << 20) == 0
    array = np.frombuffer(mapping, np.uint8)
    array[:] = 7
    assert os.pread(fd, 2, array.size - 2) == b"\7\7"
    del mapping
    assert array[-1] == 7  # the view keeps the memory
    os.close(fd)
