"""Every backward of the reference against central differences of its forward, in fp64."""

import numpy as np
import pytest
from cases import CASES, Case, Inputs, relative_error

from cktrain import cython_kernels

STEP = 1e-5
# Truncation leaves STEP² times a third derivative, 1e-10; rounding a sum of some hundred over STEP, 1e-9.
TOLERANCE = 1e-6

EXAMPLES = [
    pytest.param(case, index, id=f"{case.name}-{index}")
    for case in CASES.values()
    if case.gradients
    for index in range(len(case.examples))
]


def _objective(case: Case, kernels: object, inputs: Inputs) -> float:
    saved = case.forward(kernels, inputs)
    return float(sum((saved[name] * inputs[f"d{name}"]).sum() for name in case.outputs))


def _differences(case: Case, kernels: object, inputs: Inputs, name: str) -> np.ndarray:
    """Return the central differences of the objective along each element of the input `name`."""
    array = inputs[name]
    result = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        middle = array[index]
        array[index] = middle + STEP
        above = _objective(case, kernels, inputs)
        array[index] = middle - STEP
        below = _objective(case, kernels, inputs)
        array[index] = middle
        result[index] = (above - below) / (2 * STEP)
    return result


@pytest.mark.parametrize(("case", "example"), EXAMPLES)
def test_backward_agrees_with_central_differences(case: Case, example: int) -> None:
    kernels = cython_kernels.load("reference")
    inputs = case.draw(np.random.default_rng(example), case.examples[example], np.float64)
    for name, value in inputs.items():
        if name.endswith("_before"):
            value[...] = 0.0
    got = case.run(kernels, inputs)
    for name in case.gradients:
        if inputs[name] is None:
            continue
        gradient = f"d{name}"
        want = _differences(case, kernels, inputs, name)
        error = relative_error(got[gradient], want, case.sizes(inputs).get(gradient, 0.0))
        assert error < TOLERANCE, f"{gradient} of {case.examples[example]}: {error:.1e}"


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.gradients], ids=lambda c: c.name)
def test_backward_adds_to_what_was_there(case: Case) -> None:
    """Weight gradients, and with accumulate=True those of activations, are added to; nothing else is read."""
    kernels = cython_kernels.load("reference")
    shape = case.examples[0]
    inputs = case.draw(np.random.default_rng(0), shape, np.float64)
    empty = {
        name: np.zeros_like(value) if name.endswith("_before") else value for name, value in inputs.items()
    }
    got, alone = case.run(kernels, inputs), case.run(kernels, empty)
    for name in alone:
        before = inputs.get(f"{name}_before", 0.0)
        assert relative_error(got[name], alone[name] + before, 1.0) < 1e-15
