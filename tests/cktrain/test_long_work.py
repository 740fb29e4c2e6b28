"""Work that takes longer than a message's deadline: ranks wait by short messages, and hear of each other's errors."""

from __future__ import annotations

import time

import pytest
from thread_group import run_ranks

from cktrain import long_work
from cktrain.consistency_check import AgreedProblem
from cktrain.long_work import together_for_long


@pytest.fixture(autouse=True)
def short_beats(monkeypatch):
    """Messages that follow each other at once."""
    monkeypatch.setattr(long_work, "BEAT_S", 0.01)


def test_ranks_wait_for_the_slowest_by_short_messages():
    messages = []

    def rank(world):
        gather = world.all_gather_bytes

        def counted(words):
            messages.append(world.rank)
            return gather(words)

        world.all_gather_bytes = counted
        return together_for_long(world, lambda: time.sleep(0.2 * world.rank) or world.rank)

    assert run_ranks(2, rank) == [0, 1]
    assert messages.count(0) == messages.count(1) > 5


def test_what_one_rank_meets_all_ranks_raise():
    def rank(world):
        def work():
            if world.rank == 1:
                raise ValueError("[data] no row can be used")

        with pytest.raises(AgreedProblem, match=r"no row can be used \(rank 1\)"):
            together_for_long(world, work)
        return True

    assert run_ranks(2, rank) == [True, True]
