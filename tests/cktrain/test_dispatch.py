"""Dispatch: few Python calls between a step and its kernels. docs/benchmarks/dispatch.py measures what they cost."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cktrain import cython_kernels

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "dispatch.py"


def load_script() -> ModuleType:
    """The script, which is in no package."""
    spec = importlib.util.spec_from_file_location("dispatch_page", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.mark.parametrize("layers", [1, 3])
def test_the_modules_of_a_micro_batch(layers):
    """Under 10 calls of Python functions for each call of a kernel: a branch, its body, a linear's layout and format, the
    slot's arrays. Two more are the counter's own."""
    micro_batch, counter = script.modules(layers)
    events: list[str] = []
    with np.errstate(all="ignore"):
        micro_batch()
        counter.calls = 0
        sys.setprofile(lambda frame, event, argument: events.append(event))
        try:
            micro_batch()
        finally:
            sys.setprofile(None)
    assert counter.calls > 20 * layers
    assert events.count("call") / counter.calls < 2 + 10


@pytest.mark.parametrize("op", script.doors())
def test_a_kernels_door_keeps_nothing(op):
    """It takes arrays of no rows, and each object that a call makes is gone with it."""
    kernels = cython_kernels.load()
    call = script.doors()[op]
    for _ in range(10):
        call(kernels)
    blocks = sys.getallocatedblocks()
    for _ in range(300):
        call(kernels)
    assert abs(sys.getallocatedblocks() - blocks) < 30
