"""The group of one rank: collectives check their arguments and copy where output is not input.

A real object, so that callers have no branch for a single process.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import numpy as np

from cktrain.comm.group import Group
from cktrain.comm.work import CompletedWork, Work


class SoloGroup(Group):
    """A group of size 1."""

    def __init__(self, name: str = "solo", timeout_s: float = 120.0):
        super().__init__(rank=0, size=1, name=name, timeout_s=timeout_s)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return `[data]`."""
        return [bytes(data)]

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return `data`."""
        self._check_rank("broadcast_bytes", "root", root)
        return bytes(data)

    def split(self, color: int, key: int = 0) -> Group:
        """Return another group of one."""
        self._check_color(color)
        return SoloGroup(f"{self.name}.{color}", self.timeout_s)

    def close(self) -> None:
        """Do nothing."""

    def abort(self, code: int) -> NoReturn:
        """Exit with `code`."""
        sys.exit(code)

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        return CompletedWork()

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        output[:] = input
        return CompletedWork()

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        output[:] = input
        return CompletedWork()

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        return CompletedWork()

    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work:
        output[:] = input
        return CompletedWork()

    def _send(self, array: np.ndarray, to: int) -> Work:
        raise AssertionError("a group of one has no peer; the check refuses it")

    def _recv(self, array: np.ndarray, source: int) -> Work:
        raise AssertionError("a group of one has no peer; the check refuses it")

    def _barrier(self) -> Work:
        return CompletedWork()
