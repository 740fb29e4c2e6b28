"""The background thread: ahead of the caller, right for any order of steps, never hiding an error."""

import threading
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.data.prefetch import Prefetcher


def test_the_next_steps_are_ready_before_they_are_asked():
    computed = []
    second_ahead = threading.Event()

    def compute(step):
        computed.append((step, threading.current_thread()))
        if step == 3:
            second_ahead.set()
        return step * 10

    prefetcher = Prefetcher(compute, depth=2)
    assert prefetcher.get(1) == 10
    assert second_ahead.wait(10)
    time.sleep(0.05)  # would give the thread time to run further ahead than it may
    assert [step for step, _ in computed] == [1, 2, 3]
    assert all(thread is not threading.current_thread() for _, thread in computed)
    assert prefetcher.get(2) == 20
    prefetcher.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=20))
def test_any_order_of_steps(steps):
    prefetcher = Prefetcher(lambda step: step * 10, depth=3)
    assert [prefetcher.get(step) for step in steps] == [step * 10 for step in steps]
    prefetcher.close()


def test_steps_that_are_no_longer_wanted_are_dropped():
    class Value:
        pass

    made = weakref.WeakSet()

    def compute(step):
        value = Value()
        made.add(value)
        return value

    prefetcher = Prefetcher(compute, depth=2)
    for step in range(0, 500, 10):
        prefetcher.get(step)
    assert len(made) <= 4  # two that wait, one in the making and one just handed out
    prefetcher.close()


def test_places_may_lie_apart():
    computed = []
    third = threading.Event()

    def compute(place):
        computed.append(place)
        if place == 20:
            third.set()
        return place

    prefetcher = Prefetcher(compute, depth=2, stride=8)
    assert prefetcher.get(4) == 4
    assert third.wait(10)
    assert prefetcher.get(12) == 12 and computed[:3] == [4, 12, 20]
    prefetcher.close()


def test_an_exception_is_raised_at_its_step_in_the_caller():
    def compute(step):
        if step == 2:
            raise ValueError("step 2 is bad")
        return step

    prefetcher = Prefetcher(compute)
    assert prefetcher.get(1) == 1
    for _ in range(2):  # it does not go away by asking again
        with pytest.raises(ValueError, match="step 2 is bad"):
            prefetcher.get(2)
    assert prefetcher.get(3) == 3
    prefetcher.close()


def test_waiting_is_measured():
    made = [threading.Event() for _ in range(5)]

    def compute(step):
        time.sleep(0.2)
        made[step].set()
        return step

    prefetcher = Prefetcher(compute, depth=1)
    assert prefetcher.wait_seconds == 0
    prefetcher.get(1)
    assert prefetcher.wait_seconds > 0.15
    before = prefetcher.wait_seconds
    made[2].wait()
    time.sleep(0.05)  # it is handed over
    prefetcher.get(2)
    assert prefetcher.wait_seconds - before < 0.15
    prefetcher.close()


def test_close_joins_the_thread():
    threads = threading.active_count()
    prefetcher = Prefetcher(lambda step: step)
    prefetcher.get(1)
    assert threading.active_count() == threads + 1
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == threads
