"""The thread pool: sizes, fork, signals, callers from several threads, many small calls, no allocation."""

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels

KERNELS = cython_kernels.load()
RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 300, 400), dtype=np.float32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test begins and ends with one thread."""
    KERNELS.set_num_threads(1)
    yield
    KERNELS.set_num_threads(1)


def threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


def add() -> Any:
    out = np.full_like(A, np.nan)
    KERNELS.add(out, A, B)
    return out


def test_threads_start_and_end() -> None:
    before = threads_of_process()
    for n in (1, 2, 5, 3, 1):
        KERNELS.set_num_threads(n)
        assert KERNELS.num_threads() == n
        assert threads_of_process() == before + n - 1
        assert np.array_equal(add(), A + B)


@pytest.mark.parametrize("n", [0, -1, 5000])
def test_a_number_that_cannot_be_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n is {n}, outside \[1, 4096\]"):
        KERNELS.set_num_threads(n)
    assert KERNELS.num_threads() == 1


def test_too_many_for_the_system_leaves_one() -> None:
    """A limit on memory that a hundred workspaces do not fit in: run in a child, whose limit ends with it."""

    def child() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
        with pytest.raises(ValueError, match=r"100 threads.*Ask for fewer"):
            KERNELS.set_num_threads(100)
        assert KERNELS.num_threads() == 1
        assert np.array_equal(add(), A + B)

    assert in_child(child) == 0


def in_child(work: Any) -> int:
    """Run `work` in a forked child; its exit status, 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_is_alone_and_may_start_its_own() -> None:
    KERNELS.set_num_threads(3)
    add()

    def child() -> None:
        assert KERNELS.num_threads() == 1
        assert threads_of_process() == 1
        assert np.array_equal(add(), A + B)
        KERNELS.set_num_threads(2)
        assert threads_of_process() == 2
        assert np.array_equal(add(), A + B)

    for _ in range(3):
        assert in_child(child) == 0
        assert KERNELS.num_threads() == 3
        assert np.array_equal(add(), A + B)


def test_fork_while_another_thread_computes() -> None:
    """The child must not inherit a lock that is held."""
    KERNELS.set_num_threads(2)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            add()

    worker = threading.Thread(target=compute)
    worker.start()
    try:
        for _ in range(20):
            assert in_child(lambda: np.testing.assert_array_equal(add(), A + B)) == 0
    finally:
        stop.set()
        worker.join()


def test_workers_leave_signals_to_python() -> None:
    known = set(os.listdir("/proc/self/task"))
    KERNELS.set_num_threads(3)
    workers = set(os.listdir("/proc/self/task")) - known
    assert len(workers) == 2
    for worker in workers:
        status = Path(f"/proc/self/task/{worker}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            assert blocked >> (number - 1) & 1


def test_callers_from_several_threads_take_turns() -> None:
    KERNELS.set_num_threads(2)
    w = RNG.standard_normal((64, 400), dtype=np.float32)
    want = np.empty((300, 64), np.float32)
    KERNELS.linear_forward(want, A, w)

    def work(_: int) -> bool:
        y = np.empty_like(want)
        KERNELS.linear_forward(y, A, w)
        return np.array_equal(y, want) and np.array_equal(add(), A + B)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_many_small_calls_of_changing_size() -> None:
    """Teams of one, of some, of all, one right after the other: a worker that missed its turn would show."""
    KERNELS.set_num_threads(3)
    sizes = RNG.choice([1, 100, 30_000, 70_000, 120_000], 3000)
    x = RNG.standard_normal(120_000, dtype=np.float32)
    square = np.cumsum(x.astype(np.float64) ** 2)
    for n in sizes:
        assert KERNELS.sum_of_squares(x[:n]) == pytest.approx(square[n - 1], rel=1e-12)


def test_an_error_at_the_door_leaves_the_pool_whole() -> None:
    KERNELS.set_num_threads(2)
    for _ in range(100):
        with pytest.raises(ValueError):
            KERNELS.add(np.empty_like(A), A, B[:-1])
    assert np.array_equal(add(), A + B)


def test_the_gil_is_free_during_a_kernel() -> None:
    """Python runs beside a matmul that takes long: a thread counts while the kernel computes."""
    x = np.zeros((1500, 1500), np.float32)
    y = np.empty_like(x)
    counted = 0
    inside = threading.Event()
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        inside.wait()
        while not done.is_set():
            counted += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    inside.set()
    before = counted
    for _ in range(5):
        KERNELS.matmul(y, x, x)
    during = counted - before
    done.set()
    counter.join()
    assert during > 100


def test_a_step_faults_no_page_after_the_first() -> None:
    """Workspaces are reserved when the threads are set; calls allocate nothing."""
    KERNELS.set_num_threads(2)
    q = RNG.standard_normal((2, 256, 4, 64), dtype=np.float32)
    o, dq, dk, dv = (np.zeros_like(q) for _ in range(4))
    lse, delta = np.zeros((2, 2, 4, 256), np.float32)
    flat = q.reshape(512, 256)
    y, dw, dx = np.zeros((512, 512), np.float32), np.zeros((512, 256), np.float32), np.zeros_like(flat)
    w = RNG.standard_normal((512, 256), dtype=np.float32)

    def step() -> None:
        KERNELS.attention_forward(o, lse, q, q, q, 0.125)
        KERNELS.attention_backward(dq, dk, dv, delta, o, q, q, q, o, lse, 0.125)
        KERNELS.linear_forward(y, flat, w)
        KERNELS.linear_backward_input(dx, y, w)
        KERNELS.linear_backward_weight(dw, None, y, flat)

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    # the interpreter itself may touch a page or two; one workspace alone has a thousand
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 20
