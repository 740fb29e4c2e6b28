"""RdmaGroup without a device: ranks are threads of this process over a provider that copies memory (rdma/fake_verbs.py).

What needs a real device is in rdma/: the same checks over soft-RoCE, with both providers, and every fault.
"""

from __future__ import annotations

import contextlib
import errno
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance
import job
import numpy as np
import pytest
import rank_program

from cktrain.comm.errors import CollectiveMismatchError, RendezvousError, TransportUnavailableError
from cktrain.comm.rdma_group import RdmaGroup
from cktrain.comm.rendezvous import meet
from cktrain.comm.tcp_group import join_mesh
from cktrain.comm.transport.gid import ROCE_V2, Gid
from cktrain.comm.transport.rdma import LANES, RING_BUDGET, RdmaTransport, ring_bytes
from cktrain.comm.transport.rdma_device import DeviceDescription, PortDescription, SystemDescription
from cktrain.comm.transport.verbs import VerbsError, WorkRequestError

sys.path.insert(0, str(Path(__file__).parent / "rdma"))
import fake_verbs
from group_memory import memory_of_a_group, memory_of_one_sided_access

ADDRESS = bytes(10) + b"\xff\xff" + bytes([10, 9, 0, 1])
PORT = PortDescription(1, "ACTIVE", "Ethernet", (Gid(1, ADDRESS, ROCE_V2, "eth0"),))
SYSTEM = SystemDescription("6.1", True, (DeviceDescription("fake0", Path("/dev/null"), True, (PORT,)),), None)
NO_DEVICE = SystemDescription("6.1", True, (), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def on_ranks(
    size: int,
    program: Callable[[RdmaGroup], Any],
    systems: list[SystemDescription] | None = None,
    expected: type[BaseException] = TransportUnavailableError,
) -> list[Any]:
    """What the program returned on each rank, or the error of the expected kind that it raised."""
    port, results = free_port(), [None] * size

    def take_part(rank: int) -> None:
        try:
            meeting = meet(rank, size, ("127.0.0.1", port), None, 20)
            transport = RdmaTransport(
                open_provider=lambda name: fake_verbs, describe=lambda: systems[rank] if systems else SYSTEM
            )
            transport.connect(meeting)
            mesh = join_mesh(meeting, spin=False, where="comm.rdma")
            mesh.at_close = transport.close
            group = RdmaGroup(transport, mesh, range(size), "world", 20)
            results[rank] = program(group)
            group.close()
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, (expected, SystemExit)):
            raise result
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_conformance(size):
    checks = [c for c in conformance.CHECKS if c is not conformance.check_large or size == 2]
    ran = on_ranks(size, lambda group: [check(group) or check.__name__ for check in checks])
    assert ran == [[check.__name__ for check in checks]] * size


def test_the_example_call_by_call():
    """examples/rdma.py; rdma/test_example.py has it on a device."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "rdma.py"))
    for rank, told in enumerate(on_ranks(3, example["call_by_call"])):
        assert [line.partition(":")[0] for line in told] == [
            f"rdma_{word}" for word in ("write", "read", "allreduce", "broadcast", "barrier")
        ]
        assert f"rank {(rank - 1) % 3} wrote" in told[0] and "each now 3 on all 3 ranks" in told[2]


def test_arrays_of_allocate_travel_without_a_copy():
    n = 500_000

    def program(group: RdmaGroup) -> tuple[bool, int]:
        array = group.allocate(4 * n).view(np.float32)
        for turn in range(3):
            array[:] = group.rank + turn
            group.all_reduce(array)
            assert np.all(array == sum(r + turn for r in range(group.size)))
            array[:] = group.rank + turn
            group.all_reduce(array, async_=True).wait()
        return bool(np.all(array == 2 * 2 + 1)), group.bytes_sent

    for right, (direct, ring) in on_ranks(2, program):
        assert right
        assert direct > 0 and ring > 0  # what goes which way is a race of grants


def test_one_sided_access():
    def program(group: RdmaGroup) -> bool:
        memory = group.allocate(1 << 16)
        memory[:] = group.rank
        remote = group.rdma_register(memory)
        own = np.full(100, 10 + group.rank, np.uint8)
        group.rdma_register(own)
        other = (group.rank + 1) % group.size
        group.rdma_write(own, remote[other], 50)
        group.rdma_flush(remote[other])
        group.barrier()
        before = (group.rank - 1) % group.size
        assert np.all(memory[50:150] == 10 + before) and np.all(memory[:50] == group.rank)
        group.rdma_read(own, remote[other], 60)
        group.rdma_flush(remote[other])
        assert np.all(own[:90] == 10 + group.rank)
        for array, offset, words in (
            (own, 1 << 16, "are not within"),
            (np.zeros(8, np.uint8), 0, "no registered memory"),
        ):
            with pytest.raises(ValueError, match=words):
                group.rdma_write(array, remote[other], offset)
        with pytest.raises(ValueError, match="no other rank"):
            group.rdma_write(own, remote[group.rank], 0)
        group.barrier()
        return True

    assert on_ranks(3, program) == [True] * 3


def test_a_write_that_the_peer_refuses_is_an_error_with_its_status():
    from dataclasses import replace

    def program(group: RdmaGroup) -> bool:
        memory = group.allocate(4096)
        remote = group.rdma_register(memory)
        if group.rank == 0:
            group.rdma_write(memory, replace(remote[1], key=12345678))
            with pytest.raises(WorkRequestError, match="REM_ACCESS_ERR"):
                group.rdma_flush(remote[1])
        group.barrier()
        return True

    assert on_ranks(2, program) == [True] * 2


def test_every_rank_hears_every_reason():
    errors = on_ranks(3, lambda group: None, [SYSTEM, NO_DEVICE, SYSTEM])
    for error in errors:
        assert isinstance(error, TransportUnavailableError)
        assert set(error.reasons) == {1}
        assert "there is no RDMA device" in error.reasons[1]


@pytest.mark.parametrize(
    ("difference", "how", "mine", "theirs"),
    [
        ("length", "", "all_reduce(float32[50], sum)", "all_reduce(float32[51], sum)"),
        ("dtype", "large", "all_reduce(float32[200,000], sum)", "all_reduce(int32[200,000], sum)"),
        ("op", "async", "all_reduce(float32[100], sum)", "all_reduce(float32[100], max)"),
        ("operation", "", "all_reduce(float32[100], sum)", "broadcast(float32[100], root=0)"),
        ("root", "large", "broadcast(float32[200,000], root=0)", "broadcast(float32[200,000], root=1)"),
    ],
)
def test_mismatch_is_named_on_all_sides(monkeypatch, difference, how, mine, theirs):
    monkeypatch.setattr(sys, "argv", ["", "differ", difference, *([how] if how else [])])
    errors = on_ranks(3, rank_program.differ, expected=CollectiveMismatchError)
    for rank, error in enumerate(errors):
        assert isinstance(error, CollectiveMismatchError), errors
        odd = rank == 2
        assert f"[comm.rdma] rank {rank} called {theirs if odd else mine}, but " in str(error)
        assert f"called {mine if odd else theirs}" in str(error)


def test_a_mismatch_is_named_though_the_end_of_its_rank_is_seen_first(monkeypatch):
    """Rank 0 does not look at its completion queue, as if it were starved, until the others have raised and ended."""
    monkeypatch.setattr(sys, "argv", ["", "differ", "length", "large"])

    def starved(group: RdmaGroup) -> None:
        group.barrier()
        if group.rank == 0:
            monkeypatch.setattr(group._links.driver, "_poll", lambda: False)
        try:
            rank_program.differ(group)
        finally:
            for connection in group._mesh.control.values():  # what the others see of a process that ends
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    errors = on_ranks(3, starved, expected=CollectiveMismatchError)
    calls = [f"all_reduce(float32[{n}], sum)" for n in ("100,000", "100,000", "100,001")]
    for rank, error in enumerate(errors):
        assert isinstance(error, CollectiveMismatchError), errors
        assert f"[comm.rdma] rank {rank} called {calls[rank]}, but " in str(error)
        assert f"called {calls[2 if rank < 2 else 0]}" in str(error)


def test_a_rank_that_ends_while_the_ranks_connect(monkeypatch):
    """After the vote on devices, before its queue pairs: the others do not wait for the deadline."""
    make, made = fake_verbs.Context.create_queue_pair, []

    def end_once(self: Any, *arguments: Any) -> Any:
        made.append(self)
        if len(made) == 2:
            raise SystemExit("killed")
        return make(self, *arguments)

    monkeypatch.setattr(fake_verbs.Context, "create_queue_pair", end_once)
    began = time.monotonic()
    results = on_ranks(3, lambda group: None, expected=RendezvousError)
    assert time.monotonic() - began < 2 + job.slack_s()
    (gone,) = (rank for rank, result in enumerate(results) if isinstance(result, SystemExit))
    others = [result for rank, result in enumerate(results) if rank != gone]
    assert all(isinstance(error, RendezvousError) for error in others), results
    assert any(f"rank {gone} was lost while connecting" in str(error) for error in others), others


def test_the_rings_of_few_ranks_are_long_and_those_of_many_within_the_budget():
    for peers in (1, 3, 7, 15, 63, 127):
        taken = 2 * LANES * peers * ring_bytes(peers)
        assert taken <= max(RING_BUDGET, 2 * LANES * peers * (8 << 10)), peers
    assert ring_bytes(1) == 256 << 10


def test_the_memory_of_64_ranks_is_within_32_mb():
    """By calculation, one-sided access included; rdma/test_group.py shows that a group's is right at 8."""
    assert max(memory_of_a_group(ranks) + memory_of_one_sided_access(ranks) for ranks in range(2, 65)) < 32e6


def test_a_rank_that_cannot_make_queue_pairs_is_every_ranks_reason(monkeypatch):
    """Found out after all have a device: none is left waiting for the one that failed."""
    make, made = fake_verbs.Context.create_queue_pair, []

    def fail_once(self: Any, *arguments: Any) -> Any:
        made.append(self)
        if len(made) == 2:
            raise VerbsError("ibv_create_qp", errno.ENOMEM, "fake0")
        return make(self, *arguments)

    monkeypatch.setattr(fake_verbs.Context, "create_queue_pair", fail_once)
    errors = on_ranks(3, lambda group: None)
    reasons = [error.reasons for error in errors]
    assert reasons[0] == reasons[1] == reasons[2]
    assert len(reasons[0]) == 1
    assert "ibv_create_qp" in next(iter(reasons[0].values()))
