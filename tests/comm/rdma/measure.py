"""Latency and bandwidth of each provider beside perftest's, in one boot: two processes on one device.

    python tests/comm/rdma/measure.py [--rounds 2] [--json FILE]

Under emulation only the ratios mean something. Each figure is the best of the rounds, which alternate between the
programs: whatever else runs on the machine can only make it worse.

| row | what |
|---|---|
| write, memory | 8 bytes written inline, the receiver looks at the memory: half a round trip (ib_write_lat) |
| write, queue | 8 bytes with immediate data, the receiver polls its completion queue: half a round trip |
| bandwidth | pieces with immediate data, 4 in flight, until all have arrived (ib_write_bw) |
| barrier | of a group of two ranks (ib_write_lat: half a round trip) |
| all-reduce | 16 MiB fp32 of `Group.allocate`, two ranks: busbw, which is what each direction carries (half of what
ib_write_bw -b reports, which is the sum of both) |
| all-reduce, int32 | the same in int32, whose additions are not emulated in software |
| all-reduce, plain | the same in fp32 on an ordinary array |

With --groups only the last four. Groups reduce with the kernels that a training run gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ends import WAIT_S, End, Meeting, die_with_parent, gid_of

from cktrain import cython_kernels
from cktrain.comm.bootstrap import init
from cktrain.comm.transport.queue_pair import Settings
from cktrain.comm.transport.rdma_device import describe_system, usable_devices
from cktrain.comm.transport.verbs import PROVIDERS, load_provider

LATENCY_ROUNDS, WINDOW = 500, 4
PIECES = {1 << 20: 24, 256 << 10: 60}
BARRIERS, REDUCED_BYTES, REDUCTIONS = 1000, 16 << 20, 4
BARRIER, REDUCTION = "barrier (us)", "all-reduce 16 MiB (MB/s)"
INTEGERS, PLAIN = "all-reduce, int32 (MB/s)", "all-reduce, plain (MB/s)"


def pin(role: str) -> None:
    """Each role on a processor of its own: two that spin on one cost milliseconds per message."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed["AB".index(role) % len(allowed)]})


def write_memory(end: End, role: str) -> float:
    """Half a round trip in seconds; the flag is one byte of the eight."""
    memory, times = memoryview(end.memory), []
    post, sends = end.pair.post_write, end.sends
    for i in range(LATENCY_ROUNDS):
        value = i % 255 + 1
        began = time.perf_counter()
        if role == "A":
            memory[64] = value
            post(end.region, 64, 8, end.peer.address, end.peer.rkey, 0, None, i % 16 == 15, True)
            while memory[0] != value:
                pass
        else:
            while memory[0] != value:
                pass
            memory[64] = value
            post(end.region, 64, 8, end.peer.address, end.peer.rkey, 0, None, i % 16 == 15, True)
        times.append(time.perf_counter() - began)
        if i % 16 == 15:
            sends.poll(4)
    return statistics.median(times) / 2


def write_queue(end: End, role: str) -> float:
    """Half a round trip in seconds, by completions."""
    end.pair.post_receive(end.region, 0, 0, count=32)
    post, poll = end.pair.post_write, end.receives.poll
    times = []
    for i in range(LATENCY_ROUNDS):
        began = time.perf_counter()
        if role == "B":
            assert poll(1, WAIT_S)[0].imm_data == i
        post(end.region, 64, 8, end.peer.address, end.peer.rkey, 0, i, i % 16 == 15, True)
        if role == "A":
            assert poll(1, WAIT_S)[0].imm_data == i
        times.append(time.perf_counter() - began)
        end.pair.post_receive(end.region, 0, 0)
        if i % 16 == 15:
            end.sends.poll(4)
    return statistics.median(times) / 2


def bandwidth(end: End, role: str, size: int, count: int) -> float:
    """Bytes per second from A to B."""
    began = time.perf_counter()
    if role == "A":
        sent = done = 0
        while done < count:
            while sent < count and sent - done < WINDOW:
                end.write(sent % WINDOW * size, size, imm_data=sent)
                sent += 1
            done += len(end.sends.poll(WINDOW, timeout_s=1.0))
        return count * size / (time.perf_counter() - began)
    got = 0
    while got < count:
        got += len(end.receives.poll(WINDOW, timeout_s=1.0))
    return 0.0


def take_part(role: str, provider: str, device: str) -> dict[str, float]:
    """One of the two processes of a round."""
    pin(role)
    end = End(load_provider(provider), device, size=WINDOW << 20, entries=128, settings=Settings())
    with Meeting(role) as meeting:
        end.connect(meeting.exchange(end.card()))
        meeting.exchange()
        found = {"write, memory (us)": write_memory(end, role) * 1e6}
        meeting.exchange()
        found["write, queue (us)"] = write_queue(end, role) * 1e6
        for size, count in PIECES.items():
            meeting.exchange()
            end.pair.post_receive(end.region, 0, 0, count=count)
            meeting.exchange()
            found[f"bandwidth, {size >> 10} KiB (MB/s)"] = bandwidth(end, role, size, count) / 1e6
        meeting.exchange()
    end.close()
    return found


def be_rank() -> None:
    """One of two ranks, as the environment says; rank 0 prints its figures."""
    pin("AB"[int(os.environ["RANK"])])
    group = init(transport="rdma")
    group.use_reduction(cython_kernels.load().reduction)
    times = []
    for _ in range(BARRIERS):
        began = time.perf_counter()
        group.barrier()
        times.append(time.perf_counter() - began)
    found = {BARRIER: statistics.median(times) * 1e6}
    arena = group.allocate(REDUCED_BYTES)
    arrays = {
        REDUCTION: arena.view(np.float32),
        INTEGERS: arena.view(np.int32),
        PLAIN: np.zeros(REDUCED_BYTES // 4, np.float32),
    }
    for row, array in arrays.items():
        times = []
        for _ in range(REDUCTIONS):
            group.barrier()
            began = time.perf_counter()
            group.all_reduce(array)
            times.append(time.perf_counter() - began)
        found[row] = REDUCED_BYTES / min(times) / 1e6
    if group.rank == 0:
        print(json.dumps(found))
    group.close()


def with_groups(provider: str) -> dict[str, float]:
    """Two ranks of a group over a provider."""
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"CKTRAIN_RENDEZVOUS": "127.0.0.1:29511", "CKTRAIN_VERBS": provider}
        command = [sys.executable, __file__, "--rank"]
        ranks.append(
            subprocess.Popen(command, env={**os.environ, **place}, stdout=subprocess.PIPE, text=True)
        )
    output = ranks[0].communicate(timeout=120)[0]
    assert ranks[1].wait(timeout=30) == 0 and ranks[0].returncode == 0
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def with_provider(provider: str, device: str) -> dict[str, float]:
    """A round of one provider; the other process is a child."""
    child = subprocess.Popen([sys.executable, __file__, "--part", provider, device])
    try:
        return take_part("A", provider, device)
    finally:
        assert child.wait(timeout=60) == 0


def perftest(program: str, device: str, *options: str) -> str:
    """Run a perftest program as two processes; the client's output."""
    allowed = sorted(os.sched_getaffinity(0))
    command = [program, "-d", device, "-x", str(gid_of(device).index), "-F", "-u", "17", *options]
    server = subprocess.Popen(
        ["taskset", "-c", str(allowed[-1]), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            time.sleep(0.2)
            client = ["taskset", "-c", str(allowed[0]), *command, "127.0.0.1"]
            done = subprocess.run(client, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0:
                return done.stdout
            if server.poll() is not None:
                break
        raise RuntimeError(f"{program} failed: {done.stdout} {done.stderr}")
    finally:
        server.kill()
        server.wait()


def perftest_of_groups(device: str) -> dict[str, float]:
    """What groups are held against: one direction's share of a bidirectional run, and half a round trip."""
    last = perftest("ib_write_lat", device, "-s", "8", "-n", "1000").strip().splitlines()
    row = next(line for line in reversed(last) if re.match(r"\s*8\s", line))
    text = perftest("ib_write_bw", device, "-b", "-s", str(1 << 20), "-n", "40", "-t", str(WINDOW))
    both = next(line for line in text.splitlines() if re.match(rf"\s*{1 << 20}\s", line))
    share = float(both.split()[3]) * 1.048576 / 2
    return {BARRIER: float(row.split()[4]), **dict.fromkeys((REDUCTION, INTEGERS, PLAIN), share)}


def with_perftest(device: str) -> dict[str, float]:
    """The same rows by perftest."""
    last = perftest("ib_write_lat", device, "-s", "8", "-n", "1000").strip().splitlines()
    row = next(line for line in reversed(last) if re.match(r"\s*8\s", line))
    found = {"write, memory (us)": float(row.split()[4])}  # bytes, iterations, min, max, typical
    for size, count in PIECES.items():
        text = perftest("ib_write_bw", device, "-s", str(size), "-n", str(count * 2), "-t", str(WINDOW))
        row = next(line for line in text.splitlines() if re.match(rf"\s*{size}\s", line))
        # bytes, iterations, peak, average (MiB/s)
        found[f"bandwidth, {size >> 10} KiB (MB/s)"] = float(row.split()[3]) * 1.048576
    return found


def main() -> None:
    """Alternate the programs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--groups", action="store_true", help="only what groups do")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", nargs=2, metavar=("PROVIDER", "DEVICE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        die_with_parent()
        take_part("B", *options.part)
        return
    if options.rank:
        die_with_parent()
        be_rank()
        return
    device = usable_devices(describe_system(), one_host=True)[0]
    whole = os.sched_getaffinity(0)
    rounds: dict[str, list[dict[str, float]]] = {"perftest": [], **{name: [] for name in PROVIDERS}}
    for _ in range(options.rounds):
        os.sched_setaffinity(0, whole)
        rounds["perftest"].append(perftest_of_groups(device))
        if not options.groups:
            rounds["perftest"][-1].update(with_perftest(device))
        for name in PROVIDERS:
            os.sched_setaffinity(0, whole)
            rounds[name].append({} if options.groups else with_provider(name, device))
            os.sched_setaffinity(0, whole)
            rounds[name][-1].update(with_groups(name))
    table = {
        program: {row: (min if "(us)" in row else max)(r[row] for r in results) for row in results[0]}
        for program, results in rounds.items()
    }
    rows = list(table[PROVIDERS[0]])
    print(f"{'':28}" + "".join(f"{program:>12}" for program in table))
    for row in rows:
        print(
            f"{row:28}"
            + "".join(f"{table[p][row]:12.1f}" if row in table[p] else f"{'-':>12}" for p in table)
        )
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
