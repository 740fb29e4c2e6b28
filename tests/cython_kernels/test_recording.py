"""Kernel calls that are recorded and made again, and what of a step makes that impossible."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels

kernels = cython_kernels.load()
pytestmark = pytest.mark.skipif(kernels.isa == "reference", reason="no compiled kernels")


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_calls_are_made_again_with_what_stands_in_memory_then() -> None:
    x, w, hidden, y = rows(3, 40), rows(50, 40), rows(3, 50), rows(3, 50)
    with kernels.recording([x, w]) as recording:
        kernels.linear_forward(hidden, x, w)
        kernels.gelu_forward(y, hidden, False)
    assert recording.problem == "" and len(recording) == 2
    x[...] = rows(3, 40, seed=1)
    recording.scramble()
    assert np.isnan(hidden).all() and np.isnan(y).all() and not np.isnan(x).any()
    recording.replay()
    wanted = np.empty_like(y)
    kernels.linear_forward(wanted, x, w)
    kernels.gelu_forward(wanted, wanted, False)
    assert np.array_equal(y, wanted)


def test_arrays_stay_alive() -> None:
    x = rows(4, 64)
    with kernels.recording([x]) as recording:
        y = np.empty((4, 64), np.float32)
        kernels.add(y, x, x)
        del y
        z = np.empty((4, 64), np.float32)
        kernels.add(z, x, x, 2.0)
    others = [np.zeros((4, 64), np.float32) for _ in range(50)]
    recording.replay()
    assert all(not other.any() for other in others) and np.array_equal(z, x + 2.0 * x)


def reads_what_numpy_wrote(x: np.ndarray, y: np.ndarray) -> None:
    twice = x * 2
    kernels.add(y, x, twice)


def returns_a_number(x: np.ndarray, y: np.ndarray) -> None:
    kernels.add(y, x, x, kernels.sum_of_squares(x))


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        (reads_what_numpy_wrote, "add reads b, which no kernel wrote"),
        (returns_a_number, "a call writes no array"),
    ],
)
def test_what_cannot_be_made_again_is_said(step: Any, problem: str) -> None:
    x, y = rows(4, 64), rows(4, 64)
    with kernels.recording([x]) as recording:
        step(x, y)
    assert recording.problem == problem
    with pytest.raises(AssertionError, match=problem):
        recording.replay()


def test_what_numpy_changes_between_two_calls_shows_after_scrambling() -> None:
    x, y, z = rows(4, 64), rows(4, 64), rows(4, 64)
    with kernels.recording([x]) as recording:
        kernels.add(y, x, x)
        y *= 3
        kernels.add(z, y, x)
    found = z.copy()
    recording.scramble()
    recording.replay()
    assert recording.problem == "" and not np.array_equal(z, found)


def test_a_call_that_fails_leaves_the_doors_as_they_were() -> None:
    x, y = rows(4, 64), rows(4, 64)
    with pytest.raises(ValueError, match="linear_forward"), kernels.recording([x]):
        kernels.linear_forward(y, x, rows(3, 3))
    with kernels.recording([x]) as recording:
        kernels.add(y, x, x)
    kernels.add(y, x, x)
    assert len(recording) == 1 and recording.problem == ""


def test_one_step_is_recorded_at_a_time_and_only_of_its_thread() -> None:
    x, y, other = rows(4, 64), rows(4, 64), rows(4, 64)
    with kernels.recording([x]) as recording:
        with pytest.raises(RuntimeError, match="another step is being recorded"):
            kernels.recording([]).__enter__()
        thread = threading.Thread(target=kernels.add, args=(other, x, x, 2.0))
        thread.start()
        thread.join(timeout=20)
        kernels.add(y, x, x)
    assert len(recording) == 1 and np.array_equal(other, x + 2.0 * x)
