"""What a group takes of memory: a part of rank_program.py."""

from __future__ import annotations

import numpy as np

from cktrain.comm.group import Group


def memory_of_a_group(group: Group) -> None:
    """What a rank's groups cost beyond the arrays, once every path was taken."""
    large = np.ones(3_000_000, np.float32)
    before = _proportional_set_size()
    for work in [group.all_reduce(large, async_=True), group.all_reduce(large)]:
        work.wait()
    group.all_to_all(
        large[: large.size // 2 // group.size * group.size].copy(),
        large[large.size // 2 :][: large.size // 2 // group.size * group.size],
    )
    for distance in range(1, group.size):
        work = group.recv(np.empty_like(large), (group.rank - distance) % group.size, async_=True)
        group.send(large, (group.rank + distance) % group.size)
        work.wait()
    del work
    group.barrier()
    print(f"bytes: {_proportional_set_size() - before}", flush=True)
    group.barrier()


def memory_of_another_group(group: Group) -> None:
    """What one more group of all ranks costs a rank beyond the arrays, once every way was taken."""
    large, other = np.ones(1 << 21, np.float32), np.ones(1 << 21, np.float32)
    small, received = np.ones(100, np.float32), np.empty(100, np.float32)
    group.barrier()
    before = _proportional_set_size()
    part = group.split(0)
    for work in [part.all_reduce(large, async_=True), part.all_reduce(other)]:
        work.wait()
    for distance in range(1, part.size):
        work = part.recv(received, (part.rank - distance) % part.size, async_=True)
        part.send(small, (part.rank + distance) % part.size)
        work.wait()
    part.barrier()
    print(f"bytes: {_proportional_set_size() - before}", flush=True)
    part.close()


def _proportional_set_size() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
