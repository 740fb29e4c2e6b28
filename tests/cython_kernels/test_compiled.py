"""Compiled kernels against the reference, per instruction set, storage type and number of threads.

The reference runs in fp64 on the same numbers. Tolerances are those of the table of cases (case.py).
"""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from case import gap_is_untouched
from cases import CASES, SEEDS, Case, convert
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from cktrain import cython_kernels

REFERENCE = cython_kernels.load("reference")
COMPILED = [isa for isa in cython_kernels.available() if isa != "reference"]
PARAMETERS = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=COMPILED)
def kernels(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each compiled set in turn, put back to one thread at the end."""
    kernels = cython_kernels.load(request.param)
    yield kernels
    kernels.set_num_threads(1)


def check(case: Case, kernels: Any, inputs: dict[str, Any], dtype: Any) -> None:
    """Every output of the case within its tolerance of the reference in fp64.

    The reference's backward gets what the compiled forward saved: otherwise the rounding of a bf16 output would be
    counted again, magnified where the gradient cancels.
    """
    exact = convert(inputs, np.float64)
    saved = case.forward(kernels, inputs)
    got = {**saved, **case.backward(kernels, inputs, saved)}
    want = {**case.forward(REFERENCE, exact), **case.backward(REFERENCE, exact, convert(saved, np.float64))}
    assert got.keys() == want.keys()
    for name in want:
        assert gap_is_untouched(got[name]), name
        error = case.error(name, got[name], want[name], inputs)
        assert error <= case.tolerance(name, dtype), f"{name}: {error:.3g}"


@PARAMETERS
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["fp32", "bf16"])
def test_any_shape(case: Case, kernels: Any, dtype: Any) -> None:
    @SETTINGS
    @given(st.data())
    def run(data: st.DataObject) -> None:
        inputs = case.draw(np.random.default_rng(data.draw(SEEDS)), data.draw(case.shapes), dtype)
        check(case, kernels, inputs, dtype)

    run()
