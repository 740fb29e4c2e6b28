"""Every family against results that transformers left in tests/golden/hf, on every kernel set."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "hf"))
from hf_parity import CASES, HEADING, differences, golden_folder, kernel_sets, our_results, table_row

# The stored results are rounded to fp32: half an ulp is 6e-8 of a value, and no value is above the tensor's
# largest.
# In fp32 rounding errors of about 1e-7 an operation add up over two layers; 3e-6 was the largest measured.
TOLERANCES = {"fp64": 1e-7, "fp32": 2e-5}


@pytest.mark.parametrize("case", CASES)
def test_same_logits_loss_and_gradients(case: str) -> None:
    folder = golden_folder(case)
    stored = dict(np.load(folder / "results.npz"))
    tokens, targets = stored.pop("tokens"), stored.pop("targets")
    print(f"\n{HEADING}")
    for name, kernels, precision in kernel_sets():
        found = differences(our_results(folder, tokens, targets, kernels, precision), stored)
        print(table_row(case, name, found))
        for tensor, difference in found.items():
            assert difference <= TOLERANCES[precision], (name, tensor)
