"""What a node cannot hold is refused before anything of it is allocated, with the plan's own figure."""

from __future__ import annotations

import gc
import json

import pytest
from thread_group import run_ranks

from cktrain import cython_kernels
from cktrain.memory.arena import arena_accounts
from cktrain.parallel.mesh import Mesh
from cktrain.plan.admission import _tightest_node, admit
from cktrain.plan.plan import Machine, gib, node_bytes


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    """The kernel set that keeps no memory of its own."""
    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    yield
    monkeypatch.delenv("CKTRAIN_ISA", raising=False)
    cython_kernels.load()


@pytest.fixture
def node_of(monkeypatch):
    """`node_of(bytes)`: a node with so much memory, whose processes take nothing themselves."""

    def make(memory: int) -> None:
        monkeypatch.setattr("cktrain.plan.admission.node_memory", lambda: memory)
        monkeypatch.setattr("cktrain.plan.admission.proportional_set_size", lambda: 0)

    return make


def test_a_run_that_does_not_fit_allocates_nothing(tiny, composed, node_of):
    config = tiny(precision="fp64")
    needed = node_bytes(config, Mesh(), "fp64", Machine(1, 1, 0))
    gc.collect()  # arenas of other tests
    held = arena_accounts()
    node_of(needed - 1)
    with pytest.raises(
        ValueError, match=r"^\[memory\] the run needs .* GiB, and there are .* GiB\. Set batch"
    ) as error:
        composed(config)
    assert gib(needed) in str(error.value) and not arena_accounts() - held
    node_of(needed)
    assert composed(config).trainer.config.batch == config.batch
    assert arena_accounts() - held


def test_ranks_of_a_node_share_its_memory(tiny, node_of):
    config, mesh = tiny(**{"batch.micro_batch_size": "auto"}), Mesh(2, 1, 1)
    both = node_bytes(tiny(**{"batch.micro_batch_size": 2}), mesh, "fp64", Machine(1, 2, 0))
    node_of(both)
    admitted = run_ranks(2, lambda world: admit(config, mesh, "fp64", 1, world).batch.micro_batch_size)
    assert admitted == [2, 2]
    node_of(1 << 10)

    def refused(world):
        with pytest.raises(
            ValueError, match=r"2 ranks on a node need .* GiB, and there are 0.00 GiB"
        ) as error:
            admit(config, mesh, "fp64", 1, world)
        return str(error.value)

    first, second = run_ranks(2, refused)
    assert first == second


def test_the_node_with_the_least_for_a_rank_counts():
    """Three ranks on two hosts: two that share 10 GiB have less than one that has 6."""

    class Told:
        def all_gather_bytes(self, mine: bytes) -> list[bytes]:
            assert len(json.loads(mine)) == 3
            found = [("a", 10 << 30, 100), ("a", 10 << 30, 101), ("b", 6 << 30, 102)]
            return [json.dumps(each).encode() for each in found]

    machine = _tightest_node(2, Told())
    assert (machine.ranks_per_node, machine.node_bytes, machine.process_bytes) == (2, 10 << 30, 101)
