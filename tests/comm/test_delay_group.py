"""The imitated network: never faster than its clock, and the engine carries it like any other."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cktrain.comm.delay_group import DelayGroup


@pytest.mark.parametrize("async_", [False, True])
@pytest.mark.parametrize("nbytes, latency_s, bytes_per_s", [(4 << 20, 0.001, 1e9), (64 << 10, 0.02, 1e10)])
def test_takes_at_least_the_time_of_the_network(async_, nbytes, latency_s, bytes_per_s):
    """A lower bound, which load cannot break."""
    group = DelayGroup(latency_s, bytes_per_s)
    whole = np.zeros(nbytes // 4, np.float32)
    began = time.perf_counter()
    work = group.reduce_scatter(whole[: whole.size // 2], whole, async_=async_)
    work.wait()
    assert time.perf_counter() - began >= latency_s + nbytes / 2 / bytes_per_s
    group.all_reduce(whole, async_=async_).wait()
    half = np.empty(whole.size // 2, np.float32)
    group.all_to_all(half, whole[: half.size], async_=async_).wait()
    group.end()


def test_a_submitted_operation_does_not_hold_the_caller_up():
    group = DelayGroup(1.0, 1e9)
    whole = np.zeros(1 << 20, np.float32)
    work = group.reduce_scatter(whole[: whole.size // 2], whole, async_=True)
    assert not work.done()
    work.wait()
    assert work.done()
    group.end()
