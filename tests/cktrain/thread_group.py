"""Ranks as threads of one process, for tests of what ranks compute: groups whose messages are copies under a barrier.

    run_ranks(2, lambda world: …) -> what each rank returned, in rank order

The numpy kernels run between the messages, and every sum is over ranks in their order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from cktrain.comm.group import Group
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.work import CompletedWork, Work

TIMEOUT_S = 60.0
Result = TypeVar("Result")


class _Board:
    """What the ranks of a group have in common."""

    def __init__(self, size: int) -> None:
        self.shown: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self.letters: dict[tuple[int, int], queue.Queue[np.ndarray]] = {
            (a, b): queue.Queue() for a in range(size) for b in range(size)
        }


class _Receiving(Work):
    """A letter that is copied when it is waited for."""

    def __init__(self, array: np.ndarray, letters: queue.Queue[np.ndarray]) -> None:
        self.array, self.letters = array, letters

    def done(self) -> bool:
        return not self.letters.empty()

    def wait(self, timeout: float | None = None) -> None:
        self.array[...] = self.letters.get(timeout=TIMEOUT_S)


class ThreadGroup(SoloGroup):
    """One rank of a group of threads."""

    def __init__(self, rank: int, board: _Board) -> None:
        super().__init__("threads")
        self.rank, self.size, self.board = rank, len(board.shown), board

    def show(self, value: Any) -> list[Any]:
        """What each rank shows, in rank order (collective)."""
        self.board.barrier.wait()
        self.board.shown[self.rank] = value
        self.board.barrier.wait()
        return list(self.board.shown)

    def split(self, color: int, key: int = 0) -> Group:
        members = sorted((k, r) for r, (c, k) in enumerate(self.show((color, key))) if c == color)
        boards = self.show(_Board(len(members)))
        number = [rank for _, rank in members].index(self.rank)
        return ThreadGroup(number, boards[members[0][1]])

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return self.show(bytes(data))

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        return self.show(bytes(data))[root]

    def _total(self, array: np.ndarray, op: str) -> np.ndarray:
        arrays = self.show(array.copy())
        return np.max(arrays, axis=0) if op == "max" else np.sum(arrays, axis=0)

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        array[...] = self._total(array, op)
        return CompletedWork()

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        start = sum(counts[: self.rank])
        output[...] = self._total(input, op)[start : start + counts[self.rank]]
        return CompletedWork()

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        output[...] = np.concatenate(self.show(input.copy()))
        return CompletedWork()

    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work:
        shown = self.show((input.copy(), input_counts))
        parts = [np.split(x, np.cumsum(counts)[:-1])[self.rank] for x, counts in shown]
        assert [part.size for part in parts] == output_counts
        output[...] = np.concatenate(parts)
        return CompletedWork()

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        array[...] = self.show(array.copy())[root]
        return CompletedWork()

    def _send(self, array: np.ndarray, to: int) -> Work:
        self.board.letters[self.rank, to].put(array.copy())
        return CompletedWork()

    def _recv(self, array: np.ndarray, source: int) -> Work:
        return _Receiving(array, self.board.letters[source, self.rank])

    def _barrier(self) -> Work:
        self.show(None)
        return CompletedWork()


def run_ranks(size: int, program: Callable[[Group], Result]) -> list[Result]:
    """`program` on each rank; the first error of a rank is raised, after its peers have given up."""
    board = _Board(size)

    def rank(number: int) -> Result:
        try:
            return program(ThreadGroup(number, board))
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(rank, number) for number in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in futures]
