"""Every kernel set of this machine against PyTorch's results in tests/golden/kernels.npz."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, Inputs, Outputs

from cktrain import cython_kernels

GOLDEN = Path(__file__).parents[1] / "golden" / "kernels.npz"
ISAS = ["reference", *(isa for isa in cython_kernels.available() if isa != "reference")]
EXAMPLES = [
    pytest.param(case, index, id=f"{case.name}-{index}")
    for case in CASES.values()
    for index in range(len(case.examples))
]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as stored:
        return dict(stored)


def _read(golden: dict[str, np.ndarray], case: Case, index: int) -> tuple[Inputs, Outputs]:
    """Return the stored inputs, laid out as the case draws them, and the stored outputs."""
    inputs = case.draw(np.random.default_rng(index), case.examples[index], np.float32)
    outputs: dict[str, Any] = {}
    for key, value in golden.items():
        if key.startswith(f"{case.name}/{index}/out/"):
            outputs[key.rsplit("/", 1)[1]] = value
    for name, drawn in inputs.items():
        stored = golden.get(f"{case.name}/{index}/in/{name}")
        assert (stored is None) == (drawn is None), f"{name}: make the golden file again"
        if isinstance(drawn, np.ndarray):
            drawn[...] = stored
        elif stored is not None:
            inputs[name] = stored.item()
    return inputs, outputs


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("case", "index"), EXAMPLES)
def test_kernels_agree_with_the_golden_results(
    golden: dict[str, np.ndarray], case: Case, index: int, isa: str
) -> None:
    inputs, want = _read(golden, case, index)
    got = case.run(cython_kernels.load(isa), inputs)
    assert want and set(want) <= set(got)
    for name in want:
        error, allowed = case.error(name, got[name], want[name], inputs), case.tolerance(name, np.float32)
        assert error <= allowed, f"{name}: {error:.1e} > {allowed:.1e}"


def test_every_example_has_golden_results(golden: dict[str, np.ndarray]) -> None:
    stored = {key.rsplit("/", 2)[0] for key in golden}
    assert stored == {f"{case.name}/{i}" for case in CASES.values() for i in range(len(case.examples))}
