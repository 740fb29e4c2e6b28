"""Ranks as threads of this process, kept from one call to the next: groups for tests that make thousands of calls.

    crew = crew_of("shm", 3)
    results = crew.do(lambda group: ...)        # on every rank; the first error of any rank is raised

All that moves bytes runs without Python's lock, so ranks wait for each other as processes would.
"""

from __future__ import annotations

import os
import queue
import resource
import socket
import threading
from collections.abc import Callable
from typing import Any

from cktrain.comm.group import Group
from cktrain.comm.node import join_node
from cktrain.comm.rendezvous import meet
from cktrain.comm.shm_group import ShmGroup
from cktrain.comm.tcp_group import TcpGroup, join_mesh

_crews: dict[tuple[str, int], Crew] = {}
_LIMIT_S = 60


class Crew:
    """The ranks of one group. After an error it is of no more use: `crew_of` makes another one."""

    def __init__(self, transport: str, size: int, timeout_s: float = 30):
        """Start the threads and make the group."""
        self.size = size
        self.broken = False
        self._calls: list[queue.Queue[Callable[[Group], Any] | None]] = [queue.Queue() for _ in range(size)]
        self._answers: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = f"crew-{os.getpid()}-{id(self)}", ("127.0.0.1", probe.getsockname()[1])
        # Each pair of ranks in this one process has four connections, of two ends each.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 500 + 4 * size * size * (transport == "tcp")
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, wanted)), hard))
        self._threads = [
            threading.Thread(target=self._live, args=(transport, r, place, timeout_s), daemon=True)
            for r in range(size)
        ]
        for thread in self._threads:
            thread.start()
        self._gather()

    def do(self, call: Callable[[Group], Any]) -> list[Any]:
        """Run `call` on every rank; the results by rank.

        Raises:
            BaseException: the first error that came.
        """
        results, error = self.outcomes(call)
        if error is not None:
            raise error
        return results

    def outcomes(self, call: Callable[[Group], Any]) -> tuple[list[Any], BaseException | None]:
        """Run `call` on every rank; what each returned or raised, and the first error."""
        for calls in self._calls:
            calls.put(call)
        return self._gather()

    def close(self) -> None:
        """End the group and the threads."""
        for calls in self._calls:
            calls.put(None)
        for thread in self._threads:
            thread.join(_LIMIT_S)
            assert not thread.is_alive()

    def _gather(self) -> tuple[list[Any], BaseException | None]:
        results: list[Any] = [None] * self.size
        first = None
        for _ in range(self.size):
            rank, result, error = self._answers.get(timeout=_LIMIT_S)
            results[rank] = result if error is None else error
            first = first or error
        self.broken |= first is not None
        return results, first

    def _live(self, transport: str, rank: int, place: tuple[str, tuple[str, int]], timeout_s: float) -> None:
        group: Group
        name, address = place
        try:
            if transport == "shm":
                node = join_node(name, rank, rank, self.size, timeout_s)
                group = ShmGroup(node, range(self.size), "world", timeout_s)
            else:
                mesh = join_mesh(meet(rank, self.size, address, None, timeout_s, job=name), spin=False)
                group = TcpGroup(mesh, range(self.size), "world", timeout_s)
        except BaseException as error:
            self._answers.put((rank, None, error))
            return
        self._answers.put((rank, None, None))
        while (call := self._calls[rank].get()) is not None:
            try:
                self._answers.put((rank, call(group), None))
            except BaseException as error:
                self._answers.put((rank, None, error))
        if not self.broken:
            group.close()


def crew_of(transport: str, size: int) -> Crew:
    """The crew of that kind, made when it is first asked for."""
    crew = _crews.get((transport, size))
    if crew is None or crew.broken:
        crew = _crews[transport, size] = Crew(transport, size)
    return crew


def dismiss() -> None:
    """End all crews."""
    while _crews:
        _, crew = _crews.popitem()
        crew.close()
