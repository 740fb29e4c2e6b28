"""Writes kernels.npz: PyTorch's results for the examples of every op, for users who have no PyTorch.

    python tests/golden/make_kernel_goldens.py

Per example of a row of tests/cython_kernels/cases.py the file holds the inputs in fp32 ("rope/0/in/x";
numbers and flags without dimensions, None absent) and what PyTorch makes of them in fp64, rounded to fp32
("rope/0/out/y"). The inputs are stored because numpy does not promise the same random stream for ever.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cython_kernels"))

from cases import CASES, convert  # noqa: E402
from torch_twins import torch_run  # noqa: E402


def main() -> None:
    arrays: dict[str, Any] = {}
    for case in CASES.values():
        for index, shape in enumerate(case.examples):
            inputs = case.draw(np.random.default_rng(index), shape, np.float32)
            for name, value in inputs.items():
                if value is not None:
                    arrays[f"{case.name}/{index}/in/{name}"] = np.asarray(value)
            for name, value in torch_run(case, convert(inputs, np.float64)).items():
                # The sum of squares is the one result that ops return in fp64.
                stored = value if name == "sum" else value.astype(np.float32)
                arrays[f"{case.name}/{index}/out/{name}"] = stored
    path = HERE / "kernels.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
