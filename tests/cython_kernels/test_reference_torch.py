"""The reference against PyTorch, live, over hypothesis shapes: every op, its forward and its backward."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from cases import CASES, SEEDS, Case
from torch_twins import torch_run

from cktrain import cython_kernels

pytestmark = pytest.mark.judge


def _compare(case: Case, shape: dict, seed: int, dtype: type) -> None:
    inputs = case.draw(np.random.default_rng(seed), shape, dtype)
    got = case.run(cython_kernels.load("reference"), inputs)
    want = torch_run(case, inputs)
    missing = set(got) - set(want)
    assert missing <= ({"momentum_buffer"} if case.name == "sgd" and not shape["momentum"] else set())
    for name in want:
        error, allowed = case.error(name, got[name], want[name], inputs), case.tolerance(name, dtype)
        assert error <= allowed, f"{name}: {error:.1e} > {allowed:.1e}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@settings(deadline=None, max_examples=60)
@given(data=st.data(), seed=SEEDS)
def test_reference_agrees_with_torch(case: Case, dtype: type, data: st.DataObject, seed: int) -> None:
    _compare(case, data.draw(case.shapes), seed, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_examples_agree_with_torch(case: Case, dtype: type) -> None:
    """The examples cover each option of each op, whatever hypothesis draws."""
    for seed, shape in enumerate(case.examples):
        _compare(case, shape, seed, dtype)
