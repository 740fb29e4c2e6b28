"""A program of several ranks, on the transport of CKTRAIN_TEST_TRANSPORT; its first argument says what it does."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from pathlib import Path

import conformance
import crossing
import footprint
import numpy as np
import over_rdma
import soak
from footprint import say

from cktrain.comm import bootstrap
from cktrain.comm.errors import CollectiveMismatchError, CommError
from cktrain.comm.group import Group
from cktrain.comm.tcp_group import TcpGroup
from cktrain.comm.tuning import Tables


def run_conformance(group: Group) -> None:
    if chosen := sys.argv[2:]:
        conformance.CHECKS = [check for check in conformance.CHECKS if check.__name__ in chosen]
    names = conformance.run(group)
    if group.rank == 0:
        print(f"checks run: {len(names)}", flush=True)


def short_conformance(group: Group) -> None:
    """The checks that are quick where every byte costs."""
    checks = [
        conformance.check_all_reduce_is_reduce_scatter_and_all_gather,
        conformance.check_reduce_scatter_counts,
        conformance.check_all_gather_counts,
        conformance.check_send_and_recv,
        conformance.check_bytes,
        conformance.check_async,
        conformance.check_split,
    ]
    for check in checks:
        check(group)
    if group.rank == 0:
        print(f"checks run: {len(checks)}", flush=True)


def brief_conformance(group: Group) -> None:
    """All checks but the heaviest two, or those named, with short arrays: an emulated oracle takes its time."""
    conformance.LENGTHS[:] = [0, 1, 1009]
    left_out = (conformance.check_large, conformance.check_many_mixed)
    checks = [check for check in conformance.CHECKS if check not in left_out]
    if chosen := sys.argv[2:]:
        checks = [check for check in checks if check.__name__ in chosen]
    for check in checks:
        check(group)
    if group.rank == 0:
        print(f"checks run: {len(checks)}", flush=True)


def stress(group: Group) -> None:
    """Many mixed operations back to back, synchronous and not, with naps; every result is checked."""
    steps, seed = int(sys.argv[2]), int(sys.argv[3])
    common = np.random.default_rng(seed)
    own = np.random.default_rng([seed, group.rank])
    arena = group.allocate(1 << 20).view(np.float32)
    ranks = np.arange(group.size, dtype=np.float64)
    flying: list[tuple[object, np.ndarray, float]] = []
    for step in range(steps):
        kind = common.choice(["sum", "arena", "async", "barrier", "broadcast", "gather", "message"])
        length = int(common.choice([1, 7, 1000, 20_000, 70_000]))
        expected = float(np.sum(ranks + step))
        if kind in ("sum", "async"):
            array = np.full(length, group.rank + step, np.float32)
            if kind == "sum":
                group.all_reduce(array)
                assert np.all(array == expected), (step, kind, length)
            else:
                flying.append((group.all_reduce(array, async_=True), array, expected))
        elif kind == "arena":
            offset = int(common.integers(0, 1000))
            array = arena[offset : offset + length]
            array[:] = group.rank + step
            group.all_reduce(array)
            assert np.all(array == expected), (step, kind, length)
        elif kind == "broadcast":
            root = int(common.integers(group.size))
            array = np.full(length, group.rank + step, np.int64)
            group.broadcast(array, root)
            assert np.all(array == root + step), (step, kind, length)
        elif kind == "gather":
            everyone = np.zeros(length * group.size, np.int32)
            group.all_gather(everyone, np.full(length, group.rank + step, np.int32))
            assert np.array_equal(everyone, np.repeat(np.arange(group.size) + step, length)), (
                step,
                kind,
                length,
            )
        elif kind == "message":
            received = np.zeros(length, np.float32)
            work = group.recv(received, (group.rank - 1) % group.size, async_=True)
            group.send(np.full(length, group.rank + step, np.float32), (group.rank + 1) % group.size)
            work.wait()
            assert np.all(received == (group.rank - 1) % group.size + step), (step, kind, length)
        else:
            group.barrier()
        while len(flying) > int(common.integers(0, 6)):
            work, array, wanted = flying.pop(int(common.integers(len(flying))))
            work.wait()
            assert np.all(array == wanted), step
        if own.random() < 0.01:
            time.sleep(own.random() * 0.002)
    for work, array, wanted in flying:
        work.wait()
        assert np.all(array == wanted)
    if group.rank == 0:
        say(f"steps: {steps}")


def run_soak(group: Group) -> None:
    done = soak.soak(group, 1_000_000_000, int(sys.argv[3]), float(sys.argv[2]))
    if group.rank == 0:
        say(f"operations: {done}")


def repeat(group: Group) -> None:
    """One operation again and again, until a rank is lost; says "running" once all go round."""
    kind = sys.argv[2]
    small = np.ones(100, np.float32)
    large = np.ones(int(os.environ.get("CKTRAIN_TEST_LARGE", "1000003")), np.float32)
    arena = group.allocate(4_000_000).view(np.float32) if kind == "arena" else None
    following, previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    calls = {
        "small": lambda: group.all_reduce(small, "max"),
        "large": lambda: group.all_reduce(large, "max"),
        "arena": lambda: group.all_reduce(arena, "max"),
        "async": lambda: group.all_reduce(large, "max", async_=True).wait(),
        "barrier": group.barrier,
        "all_to_all": lambda: exchange_unevenly(group, large),
        "broadcast": lambda: group.broadcast(large),
        "reduce_scatter": lambda: group.reduce_scatter(
            large[: large.size // group.size], large[: large.size // group.size * group.size].copy(), "max"
        ),
        "message": lambda: (group.send(small, following), group.recv(small, previous)),
        "idle": lambda: time.sleep(0.2),
    }
    rounds, began = 0, time.monotonic()
    # What follows is the same, so each rank may say it when it likes: emulated ones have seen enough after a second.
    while kind != "idle" and rounds < 20 and (rounds < 2 or time.monotonic() - began < 1):
        calls[kind]()
        rounds += 1
    say("running")
    while True:
        calls[kind]()
        if kind == "idle" and group.rank == 0 and os.path.exists(sys.argv[3]):
            group.barrier()


def exchange_unevenly(group: Group, array: np.ndarray) -> None:
    """Rank 0 sends half of the array to each other one, and gets nothing; between the others nothing passes."""
    half, size = array.size // 2, group.size
    counts = [half * (r > 0) for r in range(size)] if group.rank == 0 else [0] * size
    received = [half * (r == 0 and group.rank > 0) for r in range(size)]
    whole = np.empty(sum(counts), np.float32)
    group.all_to_all(np.empty(sum(received), np.float32), whole, received, counts)


def make_deaf(connection: socket.socket) -> None:
    """The kernel drops all packets that come from now on (a socket filter that keeps none), so nothing is acknowledged."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF_RET: keep 0 bytes
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(nothing))
    connection.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


def lose_control(group: Group) -> None:
    """Operations, and from a moment on rank 0 gets nothing of its control connection to the last rank, while payload
    passes: nothing is acknowledged either way."""
    assert isinstance(group, TcpGroup)
    array = np.ones(1000, np.float32)
    for _ in range(20):
        group.all_reduce(array, "max")
    group.barrier()
    if group.rank == 0:
        make_deaf(group._mesh.control[group.size - 1])
    say("running")
    done = 0
    try:
        while True:
            group.all_reduce(array, "max")
            done += 1
            time.sleep(0.001)
    except CommError:
        say(f"operations since: {done}")
        raise


def wait_for_one(group: Group) -> None:
    """All but the last rank wait in an all-reduce (or all-to-all), for which the last one is late as argv says."""
    group.barrier()
    how, seconds = sys.argv[2], float(sys.argv[3])
    if group.rank == group.size - 1:
        say("late")
        if how == "compute":
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                sum(range(1000))
        else:
            time.sleep(seconds)
    array = np.full(10, group.rank, np.float32)
    began = time.monotonic()
    try:
        if sys.argv[4:] == ["all_to_all"]:
            exchange_unevenly(group, array)
        else:
            group.all_reduce(array)
            assert np.all(array == sum(range(group.size)))
    except CommError:
        say(f"waited {time.monotonic() - began:.2f} s")
        raise
    group.barrier()
    say("all came")


def late_for(group: Group) -> None:
    """The last rank comes late to operations of which the others' buffers hold a part only."""
    n, last = 4_000_000, group.size - 1
    array, received = np.full(n, group.rank, np.float32), np.full(n, 7, np.float32)
    everyone = np.zeros(n * group.size, np.float32)
    if group.rank == last:
        time.sleep(float(sys.argv[2]))
    works = [group.all_gather(everyone, array, async_=True)]
    if group.rank == 0:
        works.append(group.send(array, last, async_=True))
    elif group.rank == last:
        works.append(group.recv(received, 0, async_=True))
    for work in works:
        work.wait()
    assert np.array_equal(everyone[::n], np.arange(group.size))
    assert group.rank != last or not received.any()
    say("all came")


def fork_and_repeat(group: Group) -> None:
    """Like `repeat`, with a child on each rank that was forked off and does nothing."""
    parent = os.getpid()
    if os.fork() == 0:
        os.close(1)  # the test reads the ranks' output to its end
        os.close(2)
        while os.getppid() == parent:
            time.sleep(0.1)
        time.sleep(5)
        os._exit(0)
    repeat(group)


def share_a_core(group: Group) -> None:
    """All ranks on one core, so that each waits for others that cannot run; one of them computes beside."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if group.rank == 0:
        threading.Thread(target=lambda: [sum(range(10_000)) for _ in range(4000)], daemon=True).start()
    for step in range(int(sys.argv[2]) if sys.argv[2:] else 200):
        small, large = np.full(100, group.rank + step, np.int64), np.full(50_000, group.rank, np.float32)
        work = group.all_reduce(large, async_=True)
        group.all_reduce(small)
        work.wait()
        assert np.all(small == sum(range(group.size)) + step * group.size)
        assert np.all(large == sum(range(group.size)))
    say("shared")


def differ(group: Group) -> None:
    """The last rank calls something else; every rank learns of it, and its payload is untouched."""
    n = 200_000 if sys.argv[3:] == ["large"] else 100
    payload = np.full(n, group.rank + 1, np.float32)
    before = payload.copy()
    odd = group.rank == group.size - 1
    async_ = sys.argv[3:] == ["async"]
    calls = {
        "length": lambda: group.all_reduce(payload[: n // 2 + odd], async_=async_),
        "dtype": lambda: group.all_reduce(payload.view(np.int32) if odd else payload, async_=async_),
        "op": lambda: group.all_reduce(payload, "max" if odd else "sum", async_=async_),
        "way": lambda: group.all_reduce(payload, "mean" if odd else "sum", async_=async_),
        "operation": lambda: (
            group.broadcast(payload, async_=async_) if odd else group.all_reduce(payload, async_=async_)
        ),
        "root": lambda: group.broadcast(payload, root=int(odd), async_=async_),
        "exchange": lambda: (
            group.all_reduce(payload) if odd else group.all_to_all(payload, np.zeros(n, np.float32))
        ),
        "lengths": lambda: group.all_to_all(
            np.zeros(group.size, np.float32),
            payload[: group.size + odd],
            None,
            [1 + (odd and r == 0) for r in range(group.size)],
            async_=async_,
        ),
        "counts": lambda: group.reduce_scatter(
            np.zeros(2, np.float32), payload[: 2 * group.size + 1], counts=_counts(group, odd), async_=async_
        ),
    }
    try:
        calls[sys.argv[2]]().wait()
    except CollectiveMismatchError:
        assert payload.tobytes() == before.tobytes()
        raise
    raise AssertionError("the difference was not seen")


def differ_before_a_later_one(group: Group) -> None:
    """Two operations are under way, and the first differs on the last rank; who waits for the second hears of the first."""
    payload = np.ones(100, np.float32)
    first = group.all_reduce(payload[: 50 + (group.rank == group.size - 1)], async_=True)
    second = group.all_reduce(payload[60:], async_=True)
    while not second.ended():
        time.sleep(0.001)
    second.wait()
    first.wait()
    raise AssertionError("the difference was not seen")


def differ_unheard(group: Group) -> None:
    """As `differ`, and what the last rank sends to rank 0 to say so is not heard there before that rank has ended."""
    assert isinstance(group, TcpGroup)
    group.barrier()
    if group.rank == 0:
        for lane in group._connections:
            for connection in lane[group.size - 1]:
                make_deaf(connection)
    differ(group)


def _counts(group: Group, odd: bool) -> list[int]:
    """Two for this rank in either case; the one more goes to another rank."""
    counts = [2] * group.size
    counts[1 if odd else (group.rank + 1) % group.size if group.size == 2 else 1 - group.rank % 2] += 1
    return counts


def compare_algorithms(group: Group) -> None:
    """Against the canonical order: to the bit where the algorithm promises it, else within rounding."""
    name = sys.argv[2]
    for length in (1, 1000, 200_003):
        for dtype in (np.dtype(np.float32), np.dtype(np.float64), conformance.BFLOAT16, np.dtype(np.int64)):
            for op in ("sum", "max"):
                given = [conformance.contribution(r, length, dtype, 20) for r in range(group.size)]
                wanted = conformance.in_canonical_order(given, op)
                results = []
                for _ in range(2):
                    array = given[group.rank].copy()
                    group.all_reduce(array, op)
                    results.append(array.tobytes())
                assert results[0] == results[1]
                assert len(set(group.all_gather_bytes(hashlib.sha256(results[0]).digest()))) == 1
                own_order = name in ("ring", "halving_doubling") and dtype.kind == "f" and op == "sum"
                if own_order:
                    conformance.assert_near_fp64(array, given, op)
                else:
                    assert conformance.same_bits(array, wanted), (length, dtype, op)
        for root in range(group.size):
            array = conformance.contribution(group.rank, length, np.dtype(np.float32), 21)
            group.broadcast(array, root)
            assert conformance.same_bits(
                array, conformance.contribution(root, length, np.dtype(np.float32), 21)
            )
        everyone = np.zeros(length * group.size, np.int32)
        group.all_gather(everyone, np.full(length, group.rank, np.int32))
        assert np.array_equal(everyone, np.repeat(np.arange(group.size), length))
    say("compared")


def receive_another_length(group: Group) -> None:
    sent, expected = int(sys.argv[2]), int(sys.argv[3])
    if group.rank == 0:
        group.send(np.zeros(sent, np.float32), 1)
        group.barrier()
    group.recv(np.zeros(expected, np.float32), 0)
    raise AssertionError("the difference was not seen")


def fail_on_one_rank(group: Group) -> None:
    """The frame in `main` aborts: the others, which wait with a long deadline, must not hang."""
    if group.rank == 1:
        raise KeyError("a mistake on one rank")
    group.barrier()


def kinds_of_splits(group: Group) -> None:
    """Of four ranks on two nodes."""
    parts = {
        "node": group.split(group.rank // 2),
        "rail": group.split(group.rank % 2),
        "reversed": group.split(0, key=-group.rank),
        "three": group.split(0 if group.rank < 3 else 1),
    }
    for part in parts.values():
        array = np.full(20_000, 1, np.float32)
        part.all_reduce(array)
        assert np.all(array == part.size)
        part.all_reduce(array, async_=True).wait()
        assert np.all(array == part.size**2)
    say(", ".join(f"{name}: {type(part).__name__}" for name, part in parts.items()))
    for part in reversed(parts.values()):
        part.close()


def tune_briefly(group: Group) -> None:
    """At three short lengths; rank 0 writes the file."""
    from cktrain.bench import collectives, tune

    collectives._ROUNDS, collectives._TURN_S = 2, 0.002
    tables, rows = tune.tune(group, Tables(), any_order=True, sizes=(256, 4096, 65536))
    assert {row.op for row in rows} == {"all_reduce", "all_gather", "broadcast"}
    if group.rank == 0:
        Path(sys.argv[2]).write_text(tables.text)


def show_tables(group: Group) -> None:
    """What this rank has, and that the group works by it."""
    tables = bootstrap.tables_of(group)
    assert tables is not None
    say(f"tables: {tables.digest().hex()}")
    compared = np.full(50_000, group.rank, np.int64)
    for part in (compared[:3], compared):
        group.all_reduce(part)
    assert np.all(compared[3:] == sum(range(group.size)))


def leave_early(group: Group) -> None:
    """The last rank exits without a word while the others wait."""
    group.barrier()
    if group.rank == group.size - 1:
        os._exit(0)
    group.barrier()


def exit_with(group: Group) -> int:
    """All ranks end with one status, some later than others."""
    group.barrier()
    time.sleep(0.2 * group.rank)
    return int(sys.argv[2])


def loaded_modules(group: Group) -> None:
    say(f"mpi4py: {'mpi4py' in sys.modules}")


PROGRAMS = {
    program.__name__: program
    for program in (
        run_conformance,
        brief_conformance,
        short_conformance,
        over_rdma.one_sided,
        over_rdma.call_by_call,
        over_rdma.reduce_arena,
        stress,
        run_soak,
        repeat,
        lose_control,
        wait_for_one,
        late_for,
        fork_and_repeat,
        share_a_core,
        differ,
        differ_before_a_later_one,
        differ_unheard,
        crossing.cross_groups,
        crossing.cross_legally,
        compare_algorithms,
        receive_another_length,
        fail_on_one_rank,
        kinds_of_splits,
        tune_briefly,
        show_tables,
        leave_early,
        exit_with,
        loaded_modules,
        footprint.cpu_time_of_waiting,
        footprint.cpu_of_the_engine,
        footprint.memory_of_a_group,
        footprint.memory_of_another_group,
    )
}


def environment() -> dict[str, str]:
    """The launcher's; CKTRAIN_TEST_NODES=2,3 makes two nodes of this machine, with the first 2 and the next 3 ranks."""
    environ = dict(os.environ)
    sizes = [int(size) for size in environ.get("CKTRAIN_TEST_NODES", "").split(",") if size]
    by_mpi = "OMPI_COMM_WORLD_RANK" in environ
    rank = int(environ["OMPI_COMM_WORLD_RANK" if by_mpi else "RANK"])
    first = 0
    for number, size in enumerate(sizes):
        if first <= rank < first + size:
            names = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
            local_rank, local_size = names if by_mpi else ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
            environ |= {
                local_rank: str(rank - first), local_size: str(size), "CKTRAIN_NODE": f"node{number}"
            }  # fmt: skip
            conformance.NODES = [] if len(set(sizes)) > 1 else _nodes(sizes)
        first += size
    return environ


def _nodes(sizes: list[int]) -> list[list[int]]:
    begins = [sum(sizes[:k]) for k in range(len(sizes))]
    return [list(range(begin, begin + size)) for begin, size in zip(begins, sizes, strict=True)]


def main() -> int:
    # A shell that starts tests in the background has its children ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if cores := os.environ.get("CKTRAIN_TEST_CORES"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    logging.basicConfig(level=os.environ.get("CKTRAIN_TEST_LOG", "WARNING"), format="%(message)s")
    timeout_s = float(os.environ.get("CKTRAIN_TEST_TIMEOUT", "30"))
    meeting_s = float(os.environ.get("CKTRAIN_TEST_MEETING", timeout_s))
    group = bootstrap.init(
        transport=os.environ.get("CKTRAIN_TEST_TRANSPORT", "shm"),
        timeout_s=meeting_s,
        algorithm=sys.argv[2]
        if sys.argv[1] == "compare_algorithms"
        else os.environ.get("CKTRAIN_TEST_ALGORITHM"),
        environ=environment(),
        table=os.environ.get("CKTRAIN_TEST_TABLE") if os.environ.get("RANK") == "0" else None,
        tcp_sockets=int(os.environ.get("CKTRAIN_TEST_SOCKETS", "0")) or None,
        interface=os.environ.get("CKTRAIN_TEST_INTERFACE"),
        device=os.environ.get("CKTRAIN_TEST_DEVICE") or None,
        gid_index=int(os.environ["CKTRAIN_TEST_GID"]) if "CKTRAIN_TEST_GID" in os.environ else None,
    )
    try:
        if meeting_s > timeout_s:
            group.barrier()
            group.timeout_s = timeout_s
        status = PROGRAMS[sys.argv[1]](group) or 0
        group.close()
    except BaseException as error:
        if isinstance(error, CommError):
            print(error, flush=True)
        else:
            traceback.print_exc()
        bootstrap.abort(group, 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
