"""A program of several ranks; its first argument says what it does. Run by test_mpi_group.py."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import conformance
import numpy as np

from cktrain.comm import bootstrap
from cktrain.comm.errors import CollectiveMismatchError, CollectiveTimeoutError, CommError
from cktrain.comm.group import Group


def run_conformance(group: Group) -> None:
    names = conformance.run(group)
    if group.rank == 0:
        print(f"checks run: {len(names)}", flush=True)


def run_conformance_in_pieces(group: Group) -> None:
    """Messages and segments so short that every array is cut many times, at odd places."""
    from cktrain.comm.mpi_group import MPIGroup

    assert isinstance(group, MPIGroup)
    pieces = MPIGroup(
        group._comm.Dup(),
        "pieces",
        60,
        progress=group._progress,
        max_message_bytes=40_003,
        segment_bytes=20_011,
    )
    for check in conformance.CHECKS:
        if check is not conformance.check_large:
            check(pieces)
    pieces.close()
    if group.rank == 0:
        print("in pieces: done", flush=True)


def wait_for_absent_rank(group: Group) -> None:
    """Rank 0 waits for a rank that never calls; the group is broken afterwards."""
    if group.rank == 1:
        time.sleep(60)
    work = group.all_reduce(np.zeros(10, np.float32), async_=True)
    try:
        work.wait(timeout=0.1)
        raise AssertionError("did not time out")
    except CollectiveTimeoutError as error:
        assert error.timeout_s == 0.1
    assert not work.done()
    try:
        work.wait()
        raise AssertionError("did not time out")
    except CollectiveTimeoutError as error:
        print(error, flush=True)
        first = error
    try:
        group.barrier()
    except CollectiveTimeoutError as error:
        assert error is first
    raise first


def call_different_things(group: Group) -> None:
    """With check=True every rank learns what the others called, before payload moves."""
    payload = np.full(100, group.rank, np.float32)
    calls = {
        "length": lambda: group.all_reduce(payload[: 50 + group.rank]),
        "dtype": lambda: group.all_reduce(payload if group.rank else payload.astype(np.float64)),
        "op": lambda: group.all_reduce(payload, "max" if group.rank else "sum"),
        "operation": lambda: group.barrier() if group.rank else group.all_reduce(payload),
        "root": lambda: group.broadcast(payload, root=group.rank),
        "lengths": lambda: group.all_to_all(
            np.zeros(2, np.float32), payload[: [3, 2][group.rank]], None, [[1, 2], [1, 1]][group.rank]
        ),
        "counts": lambda: group.all_gather(
            np.zeros(5, np.float32), payload[: [2, 2][group.rank]], [[2, 3], [3, 2]][group.rank]
        ),
    }
    try:
        calls[sys.argv[2]]()
    except CollectiveMismatchError as error:
        assert list(error.theirs) == [1 - group.rank]
        assert np.all(payload == group.rank)
        print(error, flush=True)
        time.sleep(0.5)  # so that the other rank prints, too
        raise
    raise AssertionError("the difference was not seen")


def receive_another_length(group: Group) -> None:
    sent, expected = int(sys.argv[2]), int(sys.argv[3])
    if group.rank == 0:
        group.send(np.zeros(sent, np.float32), 1)
        group.barrier()
    try:
        group.recv(np.zeros(expected, np.float32), 0)
    except CollectiveMismatchError as error:
        print(error, flush=True)
        raise
    raise AssertionError("the difference was not seen")


def exchange_another_length(group: Group) -> None:
    """Rank 0 sends other than rank 1 expects, which nobody compares before; who gets it notices."""
    sent, expected = int(sys.argv[2]), int(sys.argv[3])
    counts = [0, sent] if group.rank == 0 else [0, 0]
    received = [0, 0] if group.rank == 0 else [expected, 0]
    output = np.zeros(sum(received), np.float32)
    try:
        group.all_to_all(output, np.zeros(sum(counts), np.float32), received, counts)
        assert group.rank == 0
        group.barrier()
    except CollectiveMismatchError as error:
        print(error, flush=True)
        raise
    raise AssertionError("the difference was not seen")


def exit_with(group: Group) -> int:
    """All ranks end with one status, some later than others."""
    group.barrier()
    time.sleep(0.3 * group.rank)
    return int(sys.argv[2])


def fail_on_one_rank(group: Group) -> None:
    """The frame in `main` aborts: the others, which wait with a long deadline, must not hang."""
    if group.rank == 1:
        raise KeyError("a mistake on one rank")
    group.barrier()


def fail_without_a_frame(group: Group) -> None:
    """Nobody catches, nobody aborts: mpirun must see a rank that ended without close."""
    if group.rank == 1:
        sys.stderr.write("leaving\n")
        sys.stderr.flush()
        try:
            raise KeyError("nobody catches this")
        finally:
            os.environ["CKTRAIN_TEST_NO_FRAME"] = "1"
    group.barrier()


def sleep_in_a_wait(group: Group) -> None:
    """How long this thread computed, stood in line for a core, and slept, in a wait of 2 s."""
    group.barrier()
    if group.rank == 1:
        time.sleep(2)
    began, (ran, queued) = time.perf_counter(), _scheduled()
    group.barrier()
    elapsed, (ran_after, queued_after) = time.perf_counter() - began, _scheduled()
    if group.rank == 0:
        ran, queued = ran_after - ran, queued_after - queued
        print(f"ran: {ran} queued: {queued} slept: {elapsed - ran - queued}", flush=True)


def _scheduled() -> tuple[float, float]:
    """Seconds that this thread has run, and has waited for a core."""
    ran, queued, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran) / 1e9, int(queued) / 1e9


PROGRAMS = {
    program.__name__: program
    for program in (
        run_conformance,
        run_conformance_in_pieces,
        wait_for_absent_rank,
        call_different_things,
        receive_another_length,
        exchange_another_length,
        exit_with,
        fail_on_one_rank,
        fail_without_a_frame,
        sleep_in_a_wait,
    )
}


def main() -> int:
    name = sys.argv[1]
    timeout_s = 1.0 if name == "wait_for_absent_rank" else 60.0
    group = bootstrap.init(transport="mpi", timeout_s=timeout_s, check=name == "call_different_things")
    try:
        status = PROGRAMS[name](group) or 0
        group.close()
    except BaseException as error:
        if os.environ.get("CKTRAIN_TEST_NO_FRAME"):
            raise
        if not isinstance(error, CommError):
            traceback.print_exc()
        bootstrap.abort(group, 1)
    return status


if __name__ == "__main__":
    sys.exit(main())
