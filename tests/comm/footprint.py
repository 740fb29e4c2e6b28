"""What groups cost a rank: the CPU time of waiting and of idle threads, and memory. Programs of rank_program.py."""

from __future__ import annotations

import ctypes
import os
import sys
import time

import numpy as np

from cktrain.comm.group import Group

_PR_SET_THP_DISABLE = 41  # of linux/prctl.h


def say(text: str) -> None:
    """A line that the test waits for; a rank writes it whole."""
    os.write(1, f"{text}\n".encode())


def cpu_time_of_waiting(group: Group) -> None:
    """Of rank 0 in a wait of 2 s, or in so many as argv says."""
    for _ in range(int(sys.argv[2]) if sys.argv[2:] else 1):
        group.barrier()
        if group.rank == 1:
            time.sleep(2)
        began = os.times()
        group.barrier()
        ended = os.times()
        if group.rank == 0:
            say(f"cpu: {ended.user - began.user + ended.system - began.system}")


def cpu_of_the_engine(group: Group) -> None:
    """Share of a core that comm's threads take (and, where ranks wait, the whole process)."""
    how = sys.argv[2]
    array = np.ones(100_000, np.float32)
    group.all_reduce(array, async_=True).wait()  # the engine runs from now on
    group.barrier()
    began, before, process = time.monotonic(), _thread_ns(), time.process_time()
    if how == "idle" or group.rank == group.size - 1:
        time.sleep(2)
    else:
        group.all_reduce(array, async_=True).wait()
    elapsed = time.monotonic() - began
    threads = (_thread_ns() - before) / 1e9 / elapsed
    whole = (time.process_time() - process) / elapsed
    say(f"threads: {threads:.5f} process: {whole:.5f}")
    if how != "idle" and group.rank == group.size - 1:
        group.all_reduce(array, async_=True).wait()


def _thread_ns() -> int:
    """CPU time of comm's threads so far."""
    total = 0
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as name, open(f"/proc/self/task/{task}/schedstat") as times:
            if name.read().startswith("cktrain-"):
                total += int(times.read().split()[0])
    return total


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
    say(f"bytes: {_proportional_set_size() - before}")
    group.barrier()


def memory_of_another_group(group: Group) -> None:
    """What one more group of all ranks costs a rank beyond the arrays, once every way was taken."""
    # As large as what the group works in. Integers: their sums cost little where the processor is emulated.
    large, other = np.ones(1 << 21, np.int32), np.ones(1 << 21, np.int32)
    small, received = np.ones(100, np.float32), np.empty(100, np.float32)
    # Else the kernel joins pages of these arrays, or of the process's own, to huge ones while we count.
    assert ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0

    def take_every_way(part: Group, n: int) -> None:
        for work in [part.all_reduce(large[:n], async_=True), part.all_reduce(other[:n])]:
            work.wait()
        for distance in range(1, part.size):
            work = part.recv(received, (part.rank - distance) % part.size, async_=True)
            part.send(small, (part.rank + distance) % part.size)
            work.wait()
        part.barrier()

    take_every_way(group, 1000)  # what is done once only
    before = _proportional_set_size()
    part = group.split(0)
    take_every_way(part, large.size)
    say(f"bytes: {_proportional_set_size() - before}")
    part.close()


def _proportional_set_size() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
