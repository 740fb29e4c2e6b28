"""What only a group over RDMA does. Programs of rank_program.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
from footprint import say

from cktrain.comm.group import Group
from cktrain.comm.rdma_group import RdmaGroup


def one_sided(group: Group) -> None:
    """Write to and read from the next rank's memory, which takes no part; 3 MiB, and a few bytes at an offset."""
    assert isinstance(group, RdmaGroup)
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    memory, own = group.allocate(8 << 20), group.allocate(4 << 20)
    remote = group.rdma_register(memory)
    steps = 0
    for offset, length in ((0, 3 << 20), (4_000_001, 77)):
        memory[:] = 0
        own[:length] = np.random.default_rng(group.rank).integers(0, 256, length, dtype=np.uint8)
        group.barrier()
        group.rdma_write(own[:length], remote[after], offset)
        group.rdma_flush(remote[after])
        group.barrier()
        wanted = np.random.default_rng(before).integers(0, 256, length, dtype=np.uint8)
        assert np.array_equal(memory[offset : offset + length], wanted)
        assert not memory[:offset].any() and not memory[offset + length :].any()
        own[:] = 0
        group.rdma_read(own[:length], remote[after], offset)
        group.rdma_flush(remote[after])
        wanted = np.random.default_rng(group.rank).integers(0, 256, length, dtype=np.uint8)
        assert np.array_equal(own[:length], wanted)
        group.barrier()
        steps += 2
    if group.rank == 0:
        say(f"one-sided: {steps}")


def call_by_call(group: Group) -> None:
    """What examples/rdma.py does and says."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "rdma.py"))
    for line in example["call_by_call"](group):
        say(line)


def reduce_arena(group: Group) -> None:
    """How the bytes of arrays from `allocate` travel. (Integers: their sums cost little where the processor is emulated.)"""
    assert isinstance(group, RdmaGroup)
    array = group.allocate(8 << 20).view(np.int32)
    for turn in range(2):
        array[:] = group.rank + turn
        group.all_reduce(array)
        group.all_reduce(array, "max", async_=True).wait()
        assert np.all(array == sum(r + turn for r in range(group.size)))
    if group.rank == 0:
        say(f"sent: {dict(zip(('direct', 'ring'), group.bytes_sent, strict=True))}")
